"""A synthetic log of listening: users hear their favourite tracks again and again, and others of a few groups.

    python benchmarks/listening_log.py --out DIR/listens.tsv

3,000 users have 5 to 5,000 events (470 on average), and there are 60,000 tracks in 600 groups. An event repeats one of
the user's tracks, mostly a recent one (43 %), or is a track of one of the user's six groups. The log differs from the
others in benchmarks/hours.md: most items are rare, and showing a user's last tracks again is a good list.
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl

USERS, TRACKS, GROUPS, TASTES, SEED = 3000, 60_000, 600, 6, 7
MOST_EVENTS, SOON_S, LATER_S = 5000, 240, 40_000


def listens() -> pl.DataFrame:
    """All events, in order of users and time."""
    rng = np.random.default_rng(SEED)
    popularity = 1 / np.arange(1, TRACKS + 1) ** 0.9
    popularity /= popularity.sum()
    group_of = rng.integers(0, GROUPS, TRACKS)
    tracks_of = [np.flatnonzero(group_of == group) for group in range(GROUPS)]
    rows = []
    for user in range(USERS):
        n_events = min(int(rng.lognormal(5.6, 1.0)) + 5, MOST_EVENTS)
        tastes, heard = rng.choice(GROUPS, TASTES, replace=False), list[int]()
        group, at = rng.choice(tastes), int(rng.integers(1_400_000_000, 1_430_000_000))
        for _ in range(n_events):
            kind = rng.random()
            group = rng.choice(tastes) if kind < 0.12 else group
            mine = tracks_of[group]
            if heard and kind < 0.55:
                back = int(rng.zipf(1.3))
                track = heard[-back] if back < len(heard) else heard[rng.integers(len(heard))]
            elif kind < 0.9:
                track = mine[min(int(rng.exponential(len(mine) / 8)), len(mine) - 1)]
            else:
                track = rng.choice(TRACKS, p=popularity) if kind < 0.91 else mine[rng.integers(len(mine))]
            heard.append(int(track))
            at += int(rng.exponential(SOON_S if rng.random() < 0.9 else LATER_S))
            rows.append((user, int(track), at))
    events = pl.DataFrame(rows, schema=["listener", "track", "at"], orient="row")
    return events.with_columns(pl.from_epoch("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def main() -> None:
    """Write the log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    listens().write_csv(parser.parse_args().out, separator="\t")


if __name__ == "__main__":
    main()
