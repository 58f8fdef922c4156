#!/usr/bin/env bash
# Installs what the tests need beside Go, where it is missing: Chromium, Node.js with the packages of the examples and
# tools, Flask, Redis, and Valkey if it is to be had. Packages of the system are installed with apt-get, as root or
# through sudo.
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
		echo "the tests need Chromium, Node.js with npm, and Python with Flask, and Redis; missing here: ${missing[*]}" >&2
		exit 1
	fi
fi

# Valkey is younger than some distributions: Debian 12 has it in its backports, which are asked for this once.
install_valkey() {
	local as_root=() lists options=()
	if [ "$(id -u)" != 0 ]; then as_root=(sudo -n); fi
	export DEBIAN_FRONTEND=noninteractive
	if ! apt-cache show valkey-server >/dev/null 2>&1; then
		. /etc/os-release
		[ "${VERSION_CODENAME:-}" = bookworm ] || return 0
		lists=$(mktemp -d)
		mkdir -p "$lists/state/partial"
		echo "deb http://deb.debian.org/debian bookworm-backports main" >"$lists/sources.list"
		chmod -R a+rX "$lists"
		options=(-o "Dir::Etc::SourceList=$lists/sources.list" -o "Dir::Etc::SourceParts=/dev/null" -o "Dir::State::Lists=$lists/state")
		"${as_root[@]}" apt-get -qq "${options[@]}" update || return 1
	fi
	echo "installing valkey-server"
	"${as_root[@]}" apt-get -qq "${options[@]}" install -y --no-install-recommends valkey-server >/dev/null || return 1
	if [ -n "${lists:-}" ]; then "${as_root[@]}" rm -rf "$lists"; fi
}
if have apt-get && ! have valkey-server; then install_valkey || echo "Valkey cannot be installed here; the tests do with Redis"; fi

for folder in examples/server-rendered examples/own-ids/express tools/web; do
	if [ ! "$folder/node_modules/.package-lock.json" -nt "$folder/package-lock.json" ]; then
		echo "installing the packages of $folder"
		(cd "$folder" && npm ci --silent --no-audit --no-fund)
	fi
done
