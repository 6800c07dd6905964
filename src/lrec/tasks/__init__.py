"""The five tasks on which trained runs are tested, one file each."""
