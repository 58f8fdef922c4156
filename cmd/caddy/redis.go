//go:build redis

package main

// The store that gateways share, for those who build with -tags redis.
import _ "github.com/viewersession/caddy-viewer-session/redis"
