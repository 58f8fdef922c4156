#!/usr/bin/env bash
# Three gateways, a Redis that they share, a stand-in of the API and a demo app, all on this machine and without an
# account. From the root of the repository; Ctrl-C ends everything:
#
#	bash examples/fleet/run.sh
#
# It needs redis-server (or valkey-server) and Go. CADDY names a Caddy that is built already, PORT the first of nine ports
# in a row.
set -euo pipefail
cd "$(dirname "$0")/../.."

port=${PORT:-8080}
gateways=("127.0.0.1:$port" "127.0.0.1:$((port + 1))" "127.0.0.1:$((port + 2))")
redis_port=$((port + 5))
export API="127.0.0.1:$((port + 3))" APP="127.0.0.1:$((port + 4))" REDIS="127.0.0.1:$redis_port"
export ENDPOINT="http://$API/viewer/sessions"

redis=$(type -P redis-server || type -P valkey-server) || {
	echo "redis-server is needed, for example: apt-get install redis-server" >&2
	exit 1
}

dir=$(mktemp -d)
export SECRETS="$dir/secrets"
pids=()
finish() {
	trap - EXIT INT TERM
	if [ ${#pids[@]} -gt 0 ]; then
		kill "${pids[@]}" 2>/dev/null || true
		wait "${pids[@]}" 2>/dev/null || true
	fi
	rm -rf "$dir"
}
trap finish EXIT
trap 'exit 0' INT TERM

start() {
	local log=$1
	shift
	"$@" >"$dir/$log.log" 2>&1 &
	pids+=($!)
}

# await waits until something listens there.
await() {
	local host=${1%:*} port=${1##*:} _
	for _ in $(seq 200); do
		if (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null; then return; fi
		sleep 0.1
	done
	echo "nothing listens on $1:" >&2
	cat "$dir"/*.log >&2
	exit 1
}

# Each run has secrets of its own.
(umask 077 && mkdir "$SECRETS")
random() { head -c 32 /dev/urandom | base64; }
echo "pdf_live_made_up_for_the_stand_in" >"$SECRETS/api-key"
random >"$SECRETS/redis-password"
random >"$SECRETS/encryption-key"

# Redis keeps nothing on disk. The gateways' user may do what they need, and nothing else.
(umask 077 && cat >"$dir/redis.conf" <<EOF
bind 127.0.0.1
port $redis_port
save ""
appendonly no
dir $dir
maxmemory 100mb
maxmemory-policy noeviction
user default off
user gateway on >$(cat "$SECRETS/redis-password") ~viewer_session:* +get +set +del +eval +evalsha +ping
EOF
)

caddy=${CADDY:-$dir/caddy}
if [ -z "${CADDY:-}" ]; then
	echo "building Caddy, which takes some minutes the first time"
	go build -tags nobadger,nomysql,nopgx,redis -o "$caddy" ./cmd/caddy
fi

start redis "$redis" "$dir/redis.conf"
start api-and-app "$caddy" run --adapter caddyfile --config examples/fleet/api-and-app.Caddyfile
await "$REDIS"
await "$API"
for i in 0 1 2; do
	start "gateway-$i" env GATEWAY="${gateways[$i]}" ADMIN="127.0.0.1:$((port + 6 + i))" \
		"$caddy" run --adapter caddyfile --config examples/fleet/Caddyfile
done
for gateway in "${gateways[@]}"; do await "$gateway"; done

cat <<EOF
Three gateways are there. Each gives out the same token, which was minted once:

	curl http://${gateways[0]}/documents/floor-plan
	curl http://${gateways[1]}/documents/floor-plan
	curl http://${gateways[2]}/documents/floor-plan
	curl http://$API/emulator/stats

Stop Redis, and see that they go on by themselves: kill ${pids[0]}
What each says of its store: curl http://127.0.0.1:$((port + 6))/viewer_session/
EOF

wait
