"""Remove the data of this project's embedded servers: `python -m promptstack.embedded`."""

import shutil
import sys

from promptstack.config.errors import PromptStackError
from promptstack.config.settings import get_settings
from promptstack.embedded.servers import remove

if __name__ == "__main__":
    try:
        state_dir = get_settings().state_dir
        # A demonstration that was killed leaves a state folder of its own.
        for folder in state_dir.glob("demo-*"):
            remove(folder)
            shutil.rmtree(folder, ignore_errors=True)
        remove(state_dir)
    except PromptStackError as error:
        sys.exit(str(error))
