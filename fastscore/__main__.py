"""`python -m fastscore` is the command `fastscore`."""

from fastscore.cli import main

raise SystemExit(main())
