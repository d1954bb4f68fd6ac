"""Commands on data alone: `vitreous data ...`; each in a file of its own."""

from cyclopts import App

from vitreous.cli.app import app

data = App(name="data", help="Pack, check and time data.", help_format="plaintext")
app.command(data)
