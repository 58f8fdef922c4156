#!/usr/bin/env bash
# Installs what the tests need beside Go, where it is missing: Chromium, Node.js with the packages of the examples and
# tools, Flask, Redis, and Valkey if the system has it, and the app servers that the gateway is tested with. Packages of
# the system are installed with apt-get, as root or through sudo.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()

have() { type -P "$1" >/dev/null; } # not a function of the name

have_chromium() {
	local name
	if [ -n "${CHROMIUM:-}" ]; then return 0; fi
	for name in chromium chromium-browser google-chrome google-chrome-stable chrome \
		"/Applications/Google Chrome.app/Contents/MacOS/Google Chrome" "/c/Program Files/Google/Chrome/Application/chrome.exe"; do
		if have "$name"; then return 0; fi
	done
	return 1
}

# find_python prints the Python that has Flask.
find_python() {
	local name
	for name in .venv/bin/python .venv/Scripts/python.exe python3 /usr/bin/python3; do
		if "$name" -c 'import flask' >/dev/null 2>&1; then
			echo "$name"
			return 0
		fi
	done
	return 1
}

have_chromium || missing+=(chromium)
have node && have npm || missing+=(nodejs npm)
find_python >/dev/null || missing+=(python3-flask)
case $(uname) in
MINGW* | MSYS*) ;; # there is no Redis for Windows, and its tests are left out
*) have redis-server || missing+=(redis-server) ;;
esac

# The app servers, in PHP, Python, Ruby, Perl and Java. Where there is no apt-get, have them installed yourself.
find_module() { "$1" "$2" "$3" >/dev/null 2>&1; }
case $(uname) in
MINGW* | MSYS*) ;; # these tests are left out there
*)
	have php || missing+=(php-cli)
	find_module /usr/bin/python3 -c 'import gunicorn' || missing+=(gunicorn)
	find_module /usr/bin/python3 -c 'import waitress' || missing+=(python3-waitress)
	find_module /usr/bin/python3 -c 'import webob' || missing+=(python3-webob)
	find_module /usr/bin/python3 -c 'import werkzeug' || missing+=(python3-flask)
	find_module /usr/bin/python3 -c 'import hypercorn' || missing+=(python3-hypercorn)
	have puma || missing+=(puma)
	find_module ruby -e 'require "rack"' || missing+=(ruby-rack)
	find_module ruby -e 'require "webrick"' || missing+=(ruby-webrick)
	have starman || missing+=(starman)
	find_module perl -e 'use CGI::Cookie' || missing+=(libcgi-pm-perl)
	find_module perl -e 'use CGI::Simple::Cookie' || missing+=(libcgi-simple-perl)
	find_module perl -e 'use Mojo::Cookie::Request' || missing+=(libmojolicious-perl)
	have javac || missing+=(default-jdk-headless)
	[ -e /usr/share/java/tomcat10-embed-core.jar ] || missing+=(libtomcat10-embed-java)
	;;
esac

if [ ${#missing[@]} -gt 0 ]; then
	as_root=()
	if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
	if have apt-get; then
		echo "installing ${missing[*]}"
		export DEBIAN_FRONTEND=noninteractive
		"${as_root[@]}" apt-get -qq update
		"${as_root[@]}" apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
	elif [ "${missing[*]}" = redis-server ] && have brew; then
		brew install --quiet redis
	elif [ "${missing[*]}" = python3-flask ]; then
		python3 -m venv .venv || py -m venv .venv
		"$(ls .venv/bin/python .venv/Scripts/python.exe 2>/dev/null)" -m pip install -q flask
	else
		echo "the tests need Chromium, Node.js with npm, Python with Flask, Redis, and app servers; missing here, by their names in Debian: ${missing[*]}" >&2
		exit 1
	fi
fi

# Valkey is younger than some distributions. Where the system has none, the tests do with Redis.
if have apt-get && ! have valkey-server && apt-cache show valkey-server >/dev/null 2>&1; then
	as_root=()
	if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
	echo "installing valkey-server"
	DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get -qq install -y --no-install-recommends valkey-server >/dev/null ||
		echo "Valkey cannot be installed here; the tests do with Redis"
fi

for folder in examples/server-rendered examples/own-ids/express tools/web; do
	if [ ! "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ]; then
		echo "installing the packages of $folder"
		(cd "$folder" && npm ci --silent --no-audit --no-fund)
	fi
done
