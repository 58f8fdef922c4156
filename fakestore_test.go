package viewersession

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// fakeStore keeps entries in memory. As a real one does, it gives locks that
// end by themselves.
type fakeStore struct {
	mu      sync.Mutex
	entries map[string]fakeEntry
	locks   map[string]fakeLock
	serial  int
	calls   []string // the operations, in the order in which they came
	err     error    // what every operation returns
}

type fakeEntry struct {
	data    []byte
	version string
	until   time.Time
}

type fakeLock struct {
	owner string
	until time.Time
}

func newFakeStore() *fakeStore {
	return &fakeStore{entries: make(map[string]fakeEntry), locks: make(map[string]fakeLock)}
}

func (s *fakeStore) next() string {
	s.serial++
	return fmt.Sprint(s.serial)
}

func (s *fakeStore) Acquire(_ context.Context, name, stale string, lockFor time.Duration) (Acquired, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	call := "acquire"
	if lockFor == 0 {
		call = "look"
	}
	s.calls = append(s.calls, call)
	if s.err != nil {
		return Acquired{}, s.err
	}
	now := time.Now()
	if e, ok := s.entries[name]; ok && now.Before(e.until) && e.version != stale {
		return Acquired{Entry: e.data, Version: e.version, TTL: e.until.Sub(now)}, nil
	}
	if l, ok := s.locks[name]; ok && now.Before(l.until) || lockFor == 0 {
		return Acquired{}, nil
	}
	owner := s.next()
	s.locks[name] = fakeLock{owner, now.Add(lockFor)}
	return Acquired{Lock: owner}, nil
}

func (s *fakeStore) Put(_ context.Context, name, lock string, entry []byte, ttl time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, "put")
	if s.err != nil {
		return s.err
	}
	s.entries[name] = fakeEntry{entry, s.next(), time.Now().Add(ttl)}
	if s.locks[name].owner == lock {
		delete(s.locks, name)
	}
	return nil
}

func (s *fakeStore) Release(_ context.Context, name, lock string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, "release")
	if s.err != nil {
		return s.err
	}
	if s.locks[name].owner == lock {
		delete(s.locks, name)
	}
	return nil
}

func (s *fakeStore) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *fakeStore) lock(t *testing.T) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.locks) > 1 {
		t.Fatalf("%d locks", len(s.locks))
	}
	for _, l := range s.locks {
		if time.Now().Before(l.until) {
			return l.owner
		}
	}
	return ""
}

// wantCalls compares the operations since the last call.
func (s *fakeStore) wantCalls(t *testing.T, want string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := strings.Join(s.calls, " "); got != want {
		t.Fatalf("the store was asked for %q, want %q", got, want)
	}
	s.calls = nil
}

// wantNothingLocked is for the end of a test: a lock that stays makes others wait.
func (s *fakeStore) wantNothingLocked(t *testing.T) {
	t.Helper()
	if owner := s.lock(t); owner != "" {
		t.Errorf("%s still has its lock", owner)
	}
}

// withFleet tests some gateways that share a store, an API and a key. Those
// that have clocks of their own come first.
func withFleet(t *testing.T, size int, test func(t *testing.T, fleet []*poolTest, store *fakeStore), clocks ...func() clock.Time) {
	t.Helper()
	withFleetOf(t, size, func(int, *poolSettings) {}, test, clocks...)
}

// withFleetOf is withFleet for gateways with settings of their own.
func withFleetOf(t *testing.T, size int, change func(gateway int, s *poolSettings), test func(t *testing.T, fleet []*poolTest, store *fakeStore), clocks ...func() clock.Time) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		api, store, endpoint := new(dwstest.API), newFakeStore(), newEndpoint()
		var fleet []*poolTest
		for i := range size {
			settings := testSettings(t)
			settings.cacheSize += int64(i) // or they were one pool
			change(i, &settings)
			member := newMember(api, store, zap.NewNop(), dwstest.Key)
			now := clock.Now
			if len(clocks) > i {
				now = clocks[i]
			}
			p, err := joinPool(settings, endpoint, member, now)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.leave(member); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			}()
			fleet = append(fleet, &poolTest{pool: p, t: t, api: api, member: member})
		}
		test(t, fleet, store)
		synctest.Wait()
		store.wantNothingLocked(t)
	})
}

// hangingStore does not answer until it is given up.
type hangingStore struct{ *fakeStore }

func (hangingStore) Acquire(ctx context.Context, _, _ string, _ time.Duration) (Acquired, error) {
	<-ctx.Done()
	return Acquired{}, ctx.Err()
}

func (hangingStore) Put(ctx context.Context, _, _ string, _ []byte, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}

// lossyStore does what it is asked, and loses the answer.
type lossyStore struct{ *fakeStore }

func (s lossyStore) Acquire(ctx context.Context, name, stale string, lockFor time.Duration) (Acquired, error) {
	got, err := s.fakeStore.Acquire(ctx, name, stale, lockFor)
	if err == nil {
		err = errors.New("no answer in time")
	}
	return got, err
}

// panickingStore has a bug.
type panickingStore struct{ *fakeStore }

func (panickingStore) Put(context.Context, string, string, []byte, time.Duration) error {
	panic("a bug")
}

// rubbishStore has a new entry at each look.
type rubbishStore struct{ *fakeStore }

func (s rubbishStore) Acquire(context.Context, string, string, time.Duration) (Acquired, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, "acquire")
	return Acquired{Entry: []byte("rubbish"), Version: s.next()}, nil
}

// stubStore is a store module.
type stubStore struct{ *fakeStore }

func (*stubStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: storeNamespace + ".stub", New: func() caddy.Module { return &stubStore{newFakeStore()} }}
}

func (*stubStore) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

type notAStore struct{}

func (*notAStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: storeNamespace + ".not_a_store", New: func() caddy.Module { return new(notAStore) }}
}

func init() {
	caddy.RegisterModule(new(stubStore))
	caddy.RegisterModule(new(notAStore))
}

// countCalls returns how often each operation came since the last call.
func (s *fakeStore) countCalls() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := make(map[string]int)
	for _, call := range s.calls {
		calls[call]++
	}
	s.calls = nil
	return calls
}

// slowStore counts who looks at the same time.
type slowStore struct {
	*fakeStore
	now, most atomic.Int32
}

func (s *slowStore) Acquire(ctx context.Context, name, stale string, lockFor time.Duration) (Acquired, error) {
	for now := s.now.Add(1); ; {
		most := s.most.Load()
		if now <= most || s.most.CompareAndSwap(most, now) {
			break
		}
	}
	defer s.now.Add(-1)
	sleep(ctx, 50*time.Millisecond)
	return s.fakeStore.Acquire(ctx, name, stale, lockFor)
}
