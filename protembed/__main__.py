"""`protembed` and `python -m protembed`: signals are answered before the command line is imported."""

from protembed import interrupts


def main() -> None:
    """Run the command line."""
    interrupts.install()
    with interrupts.nothing_to_lose():
        from protembed.cli import main as run
    run()


if __name__ == "__main__":
    main()
