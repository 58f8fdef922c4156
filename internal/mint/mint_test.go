package mint

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// fakeSource always has the same transport, and a key that tests change.
type fakeSource struct {
	transport http.RoundTripper

	mu   sync.Mutex
	key  *Key
	next *Key // what Refresh finds
}

func (s *fakeSource) Access() (http.RoundTripper, *Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.transport, s.key
}

func (s *fakeSource) Refresh(refused *Key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil || s.next.ID == refused.ID {
		return false
	}
	s.key = s.next
	return true
}

func unobserved() func(dws.Reason) { return func(dws.Reason) {} }

// roundTripper is a function that is a transport.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// mintOne mints for one client that waits to the end.
func mintOne(m *Minter, document string) (Result, error) {
	waiters := m.NewWaiters()
	waiters.Join("client")
	defer waiters.Leave("client")
	nothing := func() error { return nil }
	return m.Mint(Job{
		Request: &dws.Request{DocumentID: document, Permissions: []string{"read"}, TTL: time.Hour}, Name: document,
		MinRemaining: 15 * time.Minute, Waiters: waiters, Peek: nothing, Prepare: nothing,
	})
}

func reasonOf(err error) dws.Reason {
	failed, _ := errors.AsType[*dws.Error](err)
	if failed == nil {
		return ""
	}
	return failed.Reason
}

// answerWithToken answers as the API does.
var answerWithToken = dwstest.Answering(201, dwstest.Reply(map[string]any{"permissions": []string{"read"}}))

// withMinter tests a minter under a fake clock.
func withMinter(t *testing.T, rate float64, burst int, test func(t *testing.T, m *Minter, api *dwstest.API)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api := new(dwstest.API)
		test(t, New(Config{
			Endpoint: &url.URL{Scheme: "https", Host: "api.example.com", Path: "/viewer/sessions"}, Timeout: 5 * time.Second, Rate: rate, Burst: burst,
			Source: &fakeSource{transport: api, key: NewKey(dwstest.Key)}, Now: clock.Now, Observe: unobserved,
		}), api)
	})
}

func (q *queue) turnsLeft() (left int) {
	for q.take() {
		left++
	}
	return left
}

// Whatever ends a job before its request is sent gives its turn back.
func TestTurnIsGivenBackIfNothingIsSent(t *testing.T) {
	withMinter(t, 0.001, 40, func(t *testing.T, m *Minter, api *dwstest.API) {
		nothing := func() error { return nil }
		stop := errors.New("stop")
		job := Job{Request: &dws.Request{DocumentID: "doc", Permissions: []string{"read"}, TTL: time.Hour}, Name: "doc", Renewal: true, Peek: nothing, Prepare: func() error { return stop }}
		for range 20 {
			if _, err := m.Mint(job); !errors.Is(err, stop) {
				t.Errorf("got %v", err)
			}
		}
		// Renewals that the API's throttling holds back.
		api.Set(dwstest.Failing(429, "Retry-After", "300"))
		job.Prepare = nothing
		for range 20 {
			if r, err := m.Mint(job); reasonOf(err) != dws.Throttled || r.Sent != (api.Count() == 1 && r.Sent) {
				t.Errorf("got %v, sent %v", err, r.Sent)
			}
		}
		if left := m.queue.turnsLeft(); left != 39 || api.Count() != 1 {
			t.Errorf("%d of 40 turns are left after %d mints, want 39 after 1", left, api.Count())
		}
	})
}

// A job that everybody has left is out of the queue, and costs nothing.
func TestAbandonedJobLeavesTheQueue(t *testing.T) {
	withMinter(t, 10, 1, func(t *testing.T, m *Minter, api *dwstest.API) {
		if _, err := mintOne(m, "first"); err != nil {
			t.Fatal(err)
		}
		nothing := func() error { return nil }
		var jobs []*Waiters
		ended := make(chan error, 10)
		for i := range 10 {
			waiters := m.NewWaiters()
			waiters.Join("a")
			waiters.Join("b")
			jobs = append(jobs, waiters)
			go func() {
				_, err := m.Mint(Job{Request: &dws.Request{DocumentID: fmt.Sprint("doc", i), Permissions: []string{"read"}, TTL: time.Hour}, Name: fmt.Sprint("doc", i), Waiters: waiters, Peek: nothing, Prepare: nothing})
				ended <- err
			}()
		}
		synctest.Wait()
		for _, waiters := range jobs {
			waiters.Leave("a")
			waiters.Leave("b")
		}
		for range jobs {
			if err := <-ended; !errors.Is(err, ErrAbandoned) {
				t.Errorf("got %v", err)
			}
		}
		time.Sleep(time.Second)
		if entries, lines, timer := m.queue.size(); entries != 0 || lines != 0 || timer || api.Count() != 1 {
			t.Errorf("%d entries and %d lines are left, and %d mints", entries, lines, api.Count())
		}
		if jobs[0].Join("late") {
			t.Error("a job that has been given up is joined")
		}
	})
}

// What has a place keeps it when a mint turns out to be slow.
func TestSlowMintDoesNotEmptyTheQueue(t *testing.T) {
	withMinter(t, 10, 1, func(t *testing.T, m *Minter, _ *dwstest.API) {
		m.queue.take()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				if _, err := mintOne(m, fmt.Sprint("doc", i)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		for range 100 {
			m.queue.observe(4*time.Second, true)
		}
		wg.Wait()
	})
}
