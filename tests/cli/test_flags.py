"""Flags of lrec's own commands."""

from lrec.cli import own_command


def test_a_flag_alone_is_true() -> None:
    for given, value in ((["--exclude_seen"], True), (["--exclude_seen", "false"], False), ([], True)):
        _, parser, options = own_command(["recommend", "--ckpt_path=p", *given, "--histories=h", "--k", "3"])
        parsed = parser.parse_args(options)
        assert parsed.exclude_seen is value
        assert parsed.k == 3
    _, parser, options = own_command(["scaling", "study", "--dry_run"])
    assert options == ["--dry_run", "true"]
