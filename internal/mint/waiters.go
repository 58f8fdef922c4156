package mint

import (
	"errors"
	"sync"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/dws"
)

// RateLimited is the reason of a mint whose turn did not come in time.
const RateLimited dws.Reason = "rate_limited"

var (
	// ErrAbandoned is the error of a mint for which nobody waits any more.
	ErrAbandoned = &dws.Error{Reason: "client_gone", Err: errors.New("nobody waits for the token any more")}

	// ErrYielded is the error of a renewal that left the rate to those who wait.
	ErrYielded = &dws.Error{Reason: RateLimited, Err: errors.New("a renewal gave way to requests that wait for mint_rate")}
)

// Waiters are the clients that wait for one token. While it queues, it has an
// entry in each one's line.
type Waiters struct {
	queue *queue
	began time.Duration // by the queue's clock

	mu        sync.Mutex
	count     map[string]int // requests that wait, by client
	place     *place         // nil while it does not queue
	abandoned bool
}

// NewWaiters returns waiters for a mint that begins now.
func (m *Minter) NewWaiters() *Waiters {
	return &Waiters{queue: m.queue, began: m.queue.now(), count: make(map[string]int)}
}

// Join adds a client, and returns false if the mint has been given up because
// everybody had left.
func (w *Waiters) Join(client string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.abandoned {
		return false
	}
	w.count[client]++
	if w.place != nil {
		w.queue.join(w.place, client)
	}
	return true
}

// Leave takes away a client that has joined.
func (w *Waiters) Leave(client string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.count[client]--; w.count[client] > 0 {
		return
	}
	delete(w.count, client)
	if w.place != nil {
		w.queue.leave(w.place, client)
	}
}

// abandon gives the mint up if nobody waits for it.
func (w *Waiters) abandon() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.abandoned = len(w.count) == 0
	return w.abandoned
}

// enter gives the mint a place in the line of every client. It is nil if there
// is none.
func (w *Waiters) enter(deadline time.Duration) *place {
	w.mu.Lock()
	defer w.mu.Unlock()
	for client := range w.count {
		if w.place == nil {
			w.place = w.queue.enter(client, deadline)
		} else {
			w.queue.join(w.place, client)
		}
	}
	return w.place
}

// takeTurn returns when the mint may be sent, and how much time is left for it,
// or why it may not be sent.
func (m *Minter) takeTurn(w *Waiters) (left time.Duration, refusal *dws.Error) {
	if w.abandon() {
		return 0, ErrAbandoned
	}
	if m.queue.take() {
		return m.timeout, nil
	}
	deadline := w.began + m.timeout
	p := w.enter(deadline)
	if p == nil {
		return 0, ErrAbandoned
	}
	timer := time.NewTimer(m.queue.limit(deadline))
	defer timer.Stop()
	select {
	case <-p.decided:
	case <-timer.C:
		m.queue.expire(p) // unless it has just been granted
		<-p.decided
	}
	if p.granted {
		return deadline - m.queue.now(), nil
	}
	if w.abandon() {
		return 0, ErrAbandoned
	}
	return 0, &dws.Error{
		Reason:  RateLimited,
		Err:     errors.New("over mint_rate, and no turn within half of timeout; strangers may be asking for made-up documents, or mint_rate is too low"),
		RetryAt: m.now().Add(max(p.wait, time.Second)),
	}
}
