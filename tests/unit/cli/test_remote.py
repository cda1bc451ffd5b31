"""What the commands that speak to a server share."""

from rich.console import Console

from perf_service.cli.remote import listing


def test_an_id_is_never_broken_over_lines() -> None:
    row = ("wf-712f37b80b334eefada8", "a-fleet-with-a-long-name", "awaiting approval", "1/3", "max_num_seqs", "2026-11-22 16:27:08")
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(listing(("workflow", "of", "status", "stage", "changes", "started (UTC)"), [row]))
    assert row[0] in capture.get()
