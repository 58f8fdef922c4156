// Package relaytest stands between a client and a server in tests, and does to
// their connections what networks do.
package relaytest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Relay passes connections on to a server.
type Relay struct {
	Address string
	target  string

	mu    sync.Mutex
	conns map[*conn]bool
	total int
}

type conn struct {
	client, server net.Conn
	dead           atomic.Bool
}

// New returns a relay to the server at target. It ends with the test.
func New(t testing.TB, target string) *Relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Address: listener.Addr().String(), target: target, conns: make(map[*conn]bool)}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { r.serve(client) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		r.Reset()
		running.Wait()
	})
	return r
}

func (r *Relay) serve(client net.Conn) {
	server, err := net.Dial("tcp", r.target)
	if err != nil {
		client.Close()
		return
	}
	c := &conn{client: client, server: server}
	r.mu.Lock()
	r.conns[c] = true
	r.total++
	r.mu.Unlock()
	var both sync.WaitGroup
	pass := func(to, from net.Conn) {
		buf := make([]byte, 32<<10)
		for {
			n, err := from.Read(buf)
			if c.dead.Load() {
				if err == nil {
					continue // nobody hears it
				}
			} else if n > 0 {
				if _, writeErr := to.Write(buf[:n]); writeErr != nil {
					err = writeErr
				}
			}
			if err != nil {
				if from == server && c.dead.Load() {
					return // the client does not hear of that, either
				}
				client.Close()
				server.Close()
				return
			}
		}
	}
	both.Go(func() { pass(server, client) })
	both.Go(func() { pass(client, server) })
	both.Wait()
	client.Close()
	server.Close()
	r.mu.Lock()
	delete(r.conns, c)
	r.mu.Unlock()
}

// Silence lets the present connections carry nothing any more, without a word.
// New ones work. It returns how many there were.
func (r *Relay) Silence() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.dead.Store(true)
	}
	return len(r.conns)
}

// Reset breaks the present connections off.
func (r *Relay) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		for _, end := range []net.Conn{c.client, c.server} {
			_ = end.(*net.TCPConn).SetLinger(0)
			end.Close()
		}
	}
}

// Open returns how many connections there are.
func (r *Relay) Open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// Total returns how many there have been.
func (r *Relay) Total() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}
