package viewersession

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// errand is what a flight is for, but for the token that it brings.
type errand struct {
	renewal      bool       // nobody waits for it
	rejected     *token     // a browser says that this one was rejected, which is the cached one
	rejectedText string     // a browser says that this one was rejected, and none is cached
	span         trace.Span // of the request that led to it; nil for none
}

// flights has one flight for a key at a time, and knows who waits for it.
type flights struct {
	queue *queue
	now   func() clock.Time

	mu     sync.Mutex
	byName map[string]*flight
}

// flight is a look for a token that all share who ask for the same.
type flight struct {
	name   string
	began  time.Duration // by the queue's clock
	landed chan struct{}

	// Known when it has landed.
	token   *token
	minted  bool
	failure *failure

	waiting map[string]int // how many wait, by client; guarded by flights.mu
	place   *place         // in the queue; guarded by flights.mu
}

// join adds the client to those who wait for the flight with this name, and
// starts it if there is none. An empty client does not wait. The caller leaves
// in the end.
func (fs *flights) join(name, client string, run func(*flight)) (f *flight, started bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	f = fs.byName[name]
	if f == nil {
		f = &flight{name: name, began: fs.queue.now(), landed: make(chan struct{}), waiting: make(map[string]int)}
		if fs.byName == nil {
			fs.byName = make(map[string]*flight)
		}
		fs.byName[name], started = f, true
		go func() {
			run(f)
			fs.end(f)
			close(f.landed)
		}()
	}
	if client == "" {
		return f, started
	}
	f.waiting[client]++
	if f.place != nil {
		fs.queue.join(f.place, client)
	}
	return f, started
}

// leave takes the client away from those who wait.
func (fs *flights) leave(f *flight, client string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f.waiting[client]--; f.waiting[client] > 0 {
		return
	}
	delete(f.waiting, client)
	if f.place != nil {
		fs.queue.leave(f.place, client)
	}
}

// end lets the next who asks start another flight.
func (fs *flights) end(f *flight) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.byName[f.name] == f {
		delete(fs.byName, f.name)
	}
}

// abandoned reports whether nobody waits for the flight any more. Then nobody
// joins it either.
func (fs *flights) abandoned(f *flight) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if len(f.waiting) > 0 {
		return false
	}
	if fs.byName[f.name] == f {
		delete(fs.byName, f.name)
	}
	return true
}

// queueUp gives the flight a place in the lines of all who wait for it.
func (fs *flights) queueUp(f *flight, deadline time.Duration) *place {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for client := range f.waiting {
		if f.place == nil {
			f.place = fs.queue.enter(client, deadline)
		} else {
			fs.queue.join(f.place, client)
		}
	}
	return f.place
}

var errAbandoned = &failure{reason: reasonClientGone, err: errors.New("nobody waits for the token any more")}

// takeTurn returns when the flight may mint, or why it may not, and how much
// time it has for that.
func (fs *flights) takeTurn(f *flight, timeout time.Duration) (left time.Duration, refusal *failure) {
	if fs.abandoned(f) {
		return 0, errAbandoned
	}
	if fs.queue.take() {
		return timeout, nil
	}
	deadline := f.began + timeout
	p := fs.queueUp(f, deadline)
	if p == nil {
		return 0, errAbandoned
	}
	timer := time.NewTimer(fs.queue.limit(deadline))
	defer timer.Stop()
	select {
	case <-p.decided:
	case <-timer.C:
		fs.queue.expire(p) // unless it has just been granted
		<-p.decided
	}
	if p.granted {
		return deadline - fs.queue.now(), nil
	}
	if fs.abandoned(f) {
		return 0, errAbandoned
	}
	return 0, &failure{
		reason:  reasonRateLimited,
		err:     errors.New("over mint_rate, and no turn within half of timeout; strangers may be asking for made-up documents, or mint_rate is too low"),
		retryAt: fs.now().Add(max(p.wait, time.Second)),
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
