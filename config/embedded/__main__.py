"""Remove the data of this project's embedded servers: `python -m config.embedded`."""

import sys

from config.embedded.servers import remove
from config.errors import PromptStackError
from config.settings import get_settings

if __name__ == "__main__":
    try:
        remove(get_settings().state_dir)
    except PromptStackError as error:
        sys.exit(str(error))
