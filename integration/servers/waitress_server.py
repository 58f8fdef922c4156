import sys

import waitress

import echo

waitress.serve(echo.wsgi, listen=sys.argv[1])
