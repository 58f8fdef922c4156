package mint

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// dropInterval is how often idle connections are dropped at most: an API that is
// merely slow must not be dialed by every mint.
const dropInterval = time.Second

// connections is a transport that does not use a connection again which has
// failed. A NAT or a load balancer that has forgotten a connection drops what is
// sent on it without a word, and it may have forgotten all of them.
type connections struct {
	http.RoundTripper
	closeIdle func()

	answered atomic.Int64 // when the latest answer came, by the monotonic clock

	mu      sync.Mutex
	dropped time.Duration // when it was done last; 0 for never
}

// NewTransport returns a transport for mints that take at most timeout. A
// connection that has failed is not used again.
func NewTransport(transport http.RoundTripper, timeout time.Duration) http.RoundTripper {
	c := &connections{RoundTripper: transport, closeIdle: func() {}}
	if t, ok := transport.(*reverseproxy.HTTPTransport); ok {
		c.closeIdle = t.Transport.CloseIdleConnections
		// An HTTP/2 connection carries all mints, and dropping idle connections
		// passes over it while it carries one: pings find out, in less than the
		// half of timeout that a mint has at least, so that there is time left for
		// another connection.
		t.Transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: max(timeout/8, min(time.Second, timeout/5)), PingTimeout: timeout / 5}
	}
	return c
}

// RoundTrip implements http.RoundTripper. What fails on a connection that was
// used before, before the first byte of an answer, is sent once more on a fresh
// one: the other end had most likely closed it. What times out is not: the API
// may be at it.
func (c *connections) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, again, err := c.send(req)
	if !again {
		return resp, err
	}
	body, bodyErr := req.GetBody()
	if bodyErr != nil {
		return nil, err
	}
	c.drop(true) // whatever is idle may be as dead
	req = req.Clone(req.Context())
	req.Body = body
	resp, _, err = c.send(req)
	return resp, err
}

func (c *connections) send(req *http.Request) (resp *http.Response, again bool, err error) {
	var reused, answering atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn:              func(info httptrace.GotConnInfo) { reused.Store(info.Reused) },
		GotFirstResponseByte: func() { answering.Store(true) },
	})
	sent := clock.Now().Mono()
	resp, err = c.RoundTripper.RoundTrip(req.WithContext(ctx))
	if err != nil {
		timedOut := c.failed(req, sent, err)
		return nil, !timedOut && reused.Load() && !answering.Load() && req.GetBody != nil, err
	}
	c.answered.Store(int64(clock.Now().Mono()))
	resp.Request = req
	resp.Body = &watchedBody{ReadCloser: resp.Body, failed: func(err error) { c.failed(req, sent, err) }}
	return resp, false, nil
}

// failed drops idle connections, since they may be dead as well, and reports
// whether the request has timed out. A time-out while others have been answered
// says nothing of connections.
func (c *connections) failed(req *http.Request, sent time.Duration, err error) (timedOut bool) {
	netErr, _ := errors.AsType[net.Error](err)
	timedOut = req.Context().Err() != nil || netErr != nil && netErr.Timeout()
	if !timedOut || c.answered.Load() < int64(sent) {
		c.drop(false)
	}
	return timedOut
}

// drop closes idle connections, once a second at most unless it is urgent.
func (c *connections) drop(urgent bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := clock.Now().Mono(); urgent || c.dropped == 0 || now-c.dropped >= dropInterval {
		c.dropped = now
		c.closeIdle()
	}
}

// watchedBody tells of the error that ends it early.
type watchedBody struct {
	io.ReadCloser
	failed func(error)
}

// Read implements io.Reader.
func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.failed(err)
	}
	return n, err
}
