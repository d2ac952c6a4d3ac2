"Run the command line: `python -m spfpn` is `spfpn`."

from spfpn.apps.cli import app

if __name__ == "__main__":
    app(prog_name="spfpn")
