"""`python -m deploy.grafana` writes the dashboards' JSON anew."""

from __future__ import annotations

from deploy.grafana.dashboards import FOLDER, documents


def main() -> None:
    """Write every document into FOLDER."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
