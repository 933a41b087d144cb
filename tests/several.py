"""Commands one after the other in one process, which starts once for all of them."""

SEVERAL = """
import contextlib, io, json, sys
from qlora_cli.cli.app import main
ended = []
for words in json.loads(sys.argv[1]):
    sys.argv, code = ["qlora", *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except ImportError as fault:
            code = None
            err.write(str(fault))
    ended.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(ended))
"""
"""For `python -c`, with the commands as a JSON list of lists of words: prints exit code, output and errors of each.

A command that a missing library ends has no exit code.
"""
