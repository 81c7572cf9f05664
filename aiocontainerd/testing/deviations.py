"""List where runtimes that people use differ from the contracts, test by test, each with the reason.

`--target-deviations <table>` runs these tests and expects them to fail; one that passes fails the run, so that the
tables stay true. The report lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec


class Deviation(msgspec.Struct, frozen=True):
    """A test of a suite's class, with its parameters or for all of them, and why the target does otherwise.

    `target` is what the target's name has to end with, such as `#native`; empty for any.
    """

    suite: str
    test: str
    reason: str
    target: str = ""

    def is_of(self, suite: str, test: str, target: str) -> bool:
        """Return whether a test, by its class and name, is meant."""
        return suite == self.suite and self.test in (test, test.partition("[")[0]) and target.endswith(self.target)


_CONTAINERD_1_6 = (
    Deviation(
        "TestSnapshotter",
        "test_missing_key",
        "before the first snapshot of a namespace, commit and update say `can not find snapshotter`, not the key",
    ),
    Deviation(
        "TestSnapshotter",
        "test_commit_with_a_parent_rebases_or_is_unimplemented",
        "CommitSnapshotRequest has no parent before 2.1; the field is ignored",
    ),
    Deviation(
        "TestSnapshotter",
        "test_view_is_not_committed",
        "the native snapshotter measures the view's directory, which does not exist, before it looks at the kind",
        "#native",
    ),
    Deviation(
        "TestContentStore",
        "test_ingest_told_another_total_starts_over",
        "an ingest is resumed whatever total it is told",
    ),
    Deviation(
        "TestContentStore",
        "test_blob_is_kept_under_the_algorithm_that_commit_expects",
        "blobs are known by their sha256 alone",
    ),
    Deviation(
        "TestContentStore",
        "test_abort_works_while_a_writer_holds_the_ingest",
        "commit of an aborted ingest fails as UNKNOWN with the text of rename",
    ),
    Deviation(
        "TestDiffer",
        "test_damaged_layer_is_an_error_that_names_it",
        "errors of unpacking name the temporary mount and not the layer",
    ),
    Deviation(
        "TestDiffer",
        "test_difference_applied_to_the_lower_tree_gives_the_upper",
        "layers are compared to tar and gzip only, not to zstd",
    ),
    Deviation(
        "TestDiffer",
        "test_comparison_is_deterministic",
        "DiffRequest has no source_date_epoch before 1.7; times are not clamped",
    ),
)

TABLES: Mapping[str, Sequence[Deviation]] = {"containerd-1.6": _CONTAINERD_1_6}
