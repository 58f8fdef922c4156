package viewersession

import (
	"context"
	"net/netip"
	"sync"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

// flightOptions say what a flight is for, in addition to the claims.
type flightOptions struct {
	renewal      bool       // nobody has to wait for it
	rejected     *token     // the cached token, which a browser says was rejected
	rejectedText string     // a token that a browser says was rejected, if none is cached
	span         trace.Span // of the request that led to it; nil for none
}

// avoids reports whether it is the token that a browser says was rejected.
func (o flightOptions) avoids(t *token) bool {
	return o.rejected != nil && o.rejected.jwt() == t.jwt() || o.rejectedText != "" && t.is(o.rejectedText)
}

// flights has at most one flight for a name at a time, like a singleflight.Group
// that knows who waits.
type flights struct {
	mu     sync.Mutex
	byName map[string]*flight
}

// flight gets one token for all who ask for it meanwhile.
type flight struct {
	name    string
	waiters *mint.Waiters
	done    chan struct{}

	// Known when it is done.
	token   *token
	minted  bool
	failure *failure
}

// start adds the client to those who wait for the flight with this name, and
// starts it if there is none; the caller lets the client leave in the end. An
// empty client does not wait.
func (fs *flights) start(name, client string, newWaiters func() *mint.Waiters, run func(*flight)) (f *flight, started bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f = fs.byName[name]; f != nil && (client == "" || f.waiters.Join(client)) {
		return f, false
	}
	f = &flight{name: name, waiters: newWaiters(), done: make(chan struct{})}
	if client != "" {
		f.waiters.Join(client)
	}
	if fs.byName == nil {
		fs.byName = make(map[string]*flight)
	}
	fs.byName[name] = f
	go func() {
		run(f)
		fs.remove(f)
		close(f.done)
	}()
	return f, true
}

// remove lets the next request start another flight.
func (fs *flights) remove(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.byName[f.name] == f {
		delete(fs.byName, f.name)
	}
}

// clientOf names the client of a request for whom a place in the queue counts:
// its address as Caddy knows it, for IPv6 the network that one customer gets,
// and the user if there is one.
func clientOf(ctx context.Context, user string) string {
	ip, _ := caddyhttp.GetVar(ctx, caddyhttp.ClientIPVarKey).(string)
	if addr, err := netip.ParseAddr(ip); err == nil {
		addr = addr.Unmap().WithZone("")
		if ip = addr.String(); addr.Is6() {
			network, _ := addr.Prefix(64) // which it has
			ip = network.String()
		}
	}
	return ip + " " + user
}
