package viewersession

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
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

// withFleet tests some gateways that share a store, an API and an account. Those
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

func TestFleetMintsOnce(t *testing.T) {
	withFleet(t, 3, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Delay = 50 * time.Millisecond
		var wg sync.WaitGroup
		var mu sync.Mutex
		jwts, results := make(map[string]int), make(map[result]int)
		start := time.Now()
		for i := range 60 {
			wg.Go(func() {
				tok, result, f := fleet[i%3].get(t.Context(), testClaims("doc"))
				if f != nil {
					t.Error(f)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				jwts[tok.jwt()]++
				results[result]++
			})
		}
		wg.Wait()
		if len(jwts) != 1 || results[resultMinted] != 1 || results[resultShared] != 59 {
			t.Errorf("%d tokens, results %v", len(jwts), results)
		}
		fleet[0].wantMints(1)
		if took := time.Since(start); took > 200*time.Millisecond {
			t.Errorf("took %s", took)
		}
		for _, p := range fleet {
			p.want("doc", resultHit)
		}
		// Whoever comes later gets it from the store.
		store.mu.Lock()
		store.calls = nil
		store.mu.Unlock()
		fleet[0].want("other", resultMinted)
		store.wantCalls(t, "acquire put")
		fleet[1].want("other", resultShared)
		store.wantCalls(t, "acquire")
		fleet[1].want("other", resultHit)
		store.wantCalls(t, "")
	})
}

// A token from the store is as good as it was for the one who minted it.
func TestTokenFromTheStoreKnowsItsLife(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		minted := fleet[0].want("doc", resultMinted)
		time.Sleep(10 * time.Minute)
		got := fleet[1].want("doc", resultShared)
		if got.exp != minted.exp || got.life.Round(time.Second) != minted.life.Round(time.Second) || got.asked.Round(time.Second) != minted.asked.Round(time.Second) {
			t.Errorf("got exp %d, life %s, asked %s, want %d, %s, %s", got.exp, got.life, got.asked, minted.exp, minted.life, minted.asked)
		}
	})
}

// One gateway renews, the others take what it has minted.
func TestFleetRenewsOnce(t *testing.T) {
	withFleet(t, 3, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		for i, p := range fleet {
			p.want("doc", map[bool]result{true: resultMinted, false: resultShared}[i == 0])
		}
		for range 8 {
			for range 60 {
				time.Sleep(time.Minute)
				for _, p := range fleet {
					tok, result, f := p.get(t.Context(), testClaims("doc"))
					if f != nil || result != resultHit && result != resultRenewing || time.Until(time.Unix(tok.exp, 0)) < 15*time.Minute {
						t.Fatalf("%v, %s", f, result)
					}
				}
				synctest.Wait()
			}
		}
		// A token lives for an hour and is renewed between 17 and 31 minutes.
		if mints := fleet[0].api.Count(); mints < 8*60/31 || mints > 8*60/17 {
			t.Errorf("%d mints in 8 hours", mints)
		}
	})
}

// A renewal that another gateway is at does not wait for it.
func TestRenewalLeavesItToTheOtherGateway(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].want("doc", resultMinted)
		fleet[1].want("doc", resultShared)
		time.Sleep(35 * time.Minute)
		fleet[0].api.Delay = 2 * time.Second
		fleet[0].want("doc", resultRenewing)
		fleet[1].want("doc", resultRenewing)
		fleet[1].asked("doc", resultRenewing) // nobody waits
		time.Sleep(3 * time.Second)
		fleet[0].want("doc", resultHit)
		fleet[1].want("doc", resultRenewing)
		fleet[1].want("doc", resultHit)
		fleet[0].wantMints(2)
	})
}

// Somebody who has to wait does not go away empty because a renewal did.
func TestWaitingForAnotherGatewaysRenewal(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		fleet[0].want("doc", resultMinted)
		tok := fleet[1].want("doc", resultShared)
		time.Sleep(50 * time.Minute) // short of min_remaining
		fleet[0].api.Delay = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("doc", resultMinted) })
		synctest.Wait()
		fleet[1].renew(t.Context(), tok, testClaims("doc"), clock.Now())
		wg.Go(func() { fleet[1].asked("doc", resultShared) })
		wg.Wait()
		fleet[0].wantMints(2)
	})
}

// A gateway that dies while it mints holds the others up for a while only.
func TestLockOfAGatewayThatIsGone(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		key := fleet[0].keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
		got, err := store.Acquire(t.Context(), fleet[0].shared.name(key), "", time.Hour)
		if err != nil || got.Lock == "" {
			t.Fatal(err)
		}
		start := time.Now()
		fleet[0].want("doc", resultMinted)
		if took := time.Since(start); took != defaultTimeout/2 {
			t.Errorf("minted after %s", took)
		}
		// It is in the store, lock or no lock.
		fleet[1].want("doc", resultShared)
		if err := store.Release(t.Context(), fleet[0].shared.name(key), got.Lock); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLockOutlivesAMint(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Delay = defaultTimeout - time.Millisecond
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("doc", resultMinted) })
		time.Sleep(defaultTimeout - 2*time.Millisecond)
		if store.lock(t) == "" {
			t.Error("the lock has ended before the mint")
		}
		wg.Wait()
	})
}

// A mint that fails gives its lock back, and the next one tries at once.
func TestFailedMintReleasesTheLock(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Set(dwstest.Failing(422))
		fleet[0].wantFailure("doc", reasonRefused)
		store.wantCalls(t, "acquire release")
		// What was refused a moment ago does not burden the store.
		fleet[0].wantFailure("doc", reasonRefused)
		store.wantCalls(t, "")
		fleet[0].api.Set(nil)
		start := time.Now()
		fleet[1].want("doc", resultMinted)
		if time.Since(start) > 0 {
			t.Errorf("took %s", time.Since(start))
		}
		store.wantCalls(t, "acquire put")
	})
}

// A bug must not leave a lock either.
func TestPanicReleasesTheLock(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Set(func(dwstest.Request) (*http.Response, error) { panic("a bug") })
		fleet[0].wantFailure("doc", reasonUnavailable)
		store.wantCalls(t, "acquire release")
	})
}

// Tokens are shared while the API is down, also by a gateway that holds it back.
func TestStoreHelpsThroughAnOutage(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		fleet[0].want("doc", resultMinted)
		fleet[0].api.Set(dwstest.Unreachable)
		for i := range 5 {
			fleet[1].wantFailure(fmt.Sprint("cold", i), reasonUnavailable)
		}
		fleet[1].want("doc", resultShared)
	})
}

// A token that runs short is better than none, also if it comes from the store.
func TestShortTokenFromTheStore(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		fleet[0].want("doc", resultMinted)
		time.Sleep(50 * time.Minute)
		fleet[0].api.Set(dwstest.Failing(500))
		fleet[1].want("doc", resultStale)
		fleet[1].want("doc", resultStale)
		time.Sleep(11 * time.Minute)
		fleet[1].wantFailure("doc", reasonUnavailable)
	})
}

// Without its store a gateway works as if it had none.
func TestStoreThatFails(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		for _, p := range fleet {
			p.member.logger = zap.New(core)
		}
		store.fail(fmt.Errorf("dialing with %s: %s", dwstest.Key, dwstest.Token(1, 1)))
		fleet[0].want("doc", resultMinted)
		store.wantCalls(t, "acquire put") // the put beside the request
		fleet[1].want("doc", resultMinted)
		fleet[1].want("doc", resultHit)
		store.fail(fmt.Errorf("asleep: %w", ErrStoreUnavailable))
		fleet[0].want("other", resultMinted)
		if got := fleet[0].status(clock.Now()).Store; got != nil {
			t.Errorf("a pool without store settings says %v", got)
		}
		fleet[0].settings.store = "{}"
		status := fleet[0].status(clock.Now()).Store
		if status.FailingSince == nil || status.LastError == nil || status.Operations["acquire"]["error"] != 1 || status.Operations["acquire"]["unavailable"] != 1 {
			t.Errorf("the status is %+v", status)
		}
		time.Sleep(time.Minute)
		store.fail(nil)
		fleet[0].want("third", resultMinted)
		fleet[1].want("third", resultShared)
		if status := fleet[0].status(clock.Now()).Store; status.FailingSince != nil || status.LastError == nil {
			t.Errorf("the status is %+v", status)
		}
		fleet[0].settings.store = ""
	})
	var messages []string
	for _, entry := range logs.All() {
		messages = append(messages, entry.Message)
		text := fmt.Sprint(entry.ContextMap())
		if strings.Contains(text, dwstest.Key) || strings.Contains(text, "eyJ") {
			t.Errorf("%s holds a key or a token: %s", entry.Message, text)
		}
	}
	want := []string{
		"shared store unavailable; minting locally", "shared store unavailable; minting locally",
		"shared store available again",
	}
	if fmt.Sprint(messages) != fmt.Sprint(want) && fmt.Sprint(messages) != fmt.Sprint(append(want, want[2])) {
		t.Errorf("logged %q", messages)
	}
}

// A store that fails after it gave a lock fails nobody.
func TestStoreThatFailsInBetween(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Set(func(r dwstest.Request) (*http.Response, error) {
			store.fail(errors.New("gone"))
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		fleet[0].want("doc", resultMinted)
		fleet[0].want("doc", resultHit)
		store.wantCalls(t, "acquire put release")
		time.Sleep(defaultTimeout + lockMargin)
	})
}

// What else is in the store is refused, and minted anew.
func TestRubbishInTheStore(t *testing.T) {
	exp := time.Date(2000, 1, 1, 1, 0, 0, 0, time.UTC) // bubbles begin at midnight
	entry := func(jwt string, minted time.Time, askedExp int64) []byte {
		data, err := json.Marshal(storedToken{JWT: jwt, Minted: minted.UnixNano(), AskedExp: askedExp})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	minted := exp.Add(-time.Hour)
	for name, rubbish := range map[string][]byte{
		"not JSON":            []byte("x"),
		"no token":            []byte("{}"),
		"not a token":         entry("x.y.z", minted, exp.Unix()),
		"an expired one":      entry(dwstest.Token(1, minted.Unix()-1), minted, exp.Unix()),
		"asked to be expired": entry(dwstest.Token(1, exp.Unix()), minted, minted.Unix()-1),
		"another document's":  entry(dwstest.JWT(map[string]any{"exp": exp.Unix(), "document_id": "other"}), minted, exp.Unix()),
		"another user's":      entry(dwstest.JWT(map[string]any{"exp": exp.Unix(), "user_id": "eve"}), minted, exp.Unix()),
	} {
		t.Run(name, func(t *testing.T) {
			withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
				key := fleet[0].keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
				if err := store.Put(t.Context(), fleet[0].shared.name(key), "", rubbish, time.Hour); err != nil {
					t.Fatal(err)
				}
				store.wantCalls(t, "put")
				fleet[0].want("doc", resultMinted)
				store.wantCalls(t, "acquire acquire put")
			})
		})
	}
	t.Run("a good one", func(t *testing.T) { // or the others would say nothing
		withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
			key := fleet[0].keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
			if err := store.Put(t.Context(), fleet[0].shared.name(key), "", entry(dwstest.Token(1, exp.Unix()), minted, exp.Unix()), time.Hour); err != nil {
				t.Fatal(err)
			}
			fleet[0].want("doc", resultShared)
		})
	})
}

// Whatever makes two tokens different makes two names.
func TestStoreNames(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		p := fleet[0].pool
		names := make(map[string]string)
		add := func(what string, key []byte) {
			name := p.shared.name(key)
			if other, ok := names[name]; ok {
				t.Errorf("%s and %s have one name", what, other)
			}
			names[name] = what
		}
		add("the claims", p.keys.cacheKey(string(testClaims("doc").AppendKey(nil))))
		add("another document", p.keys.cacheKey(string(testClaims("doc2").AppendKey(nil))))
		user := testClaims("doc")
		user.UserID = "ann"
		add("a user", p.keys.cacheKey(string(user.AppendKey(nil))))
		add("another key", withKeyID(&mint.NewKey("pdf_live_other").ID, string(testClaims("doc").AppendKey(nil))))
		p.shared.endpoint += "x"
		add("another endpoint", p.keys.cacheKey(string(testClaims("doc").AppendKey(nil))))
	})
}

// An API that is slower than others care to wait is asked twice, but nobody
// goes without a token.
func TestSlowAPIInAFleet(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		fleet[0].api.Delay = defaultTimeout - time.Second
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("doc", resultMinted) })
		time.Sleep(10 * time.Millisecond)
		wg.Go(func() { fleet[1].asked("doc", resultMinted) })
		wg.Wait()
		fleet[0].wantMints(2)
	})
}

// Whoever queues for mint_rate does not make other gateways queue.
func TestQueueingGatewayDoesNotHoldUpOthers(t *testing.T) {
	slow := func(gateway int, s *poolSettings) {
		if gateway == 0 {
			s.rate, s.burst = 1, 1
		}
	}
	withFleetOf(t, 2, slow, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].want("strangers", resultMinted)
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("doc", resultShared) }) // in a second, when the other one has it
		synctest.Wait()
		start := time.Now()
		fleet[1].want("doc", resultMinted)
		if took := time.Since(start); took > 0 {
			t.Errorf("took %s", took)
		}
		wg.Wait()
		synctest.Wait()
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

// A store that hangs for as long as it is let costs half of timeout, no mint
// its time, and the API no blame.
func TestStoreThatHangs(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		p := fleet[0]
		p.member.store = hangingStore{store}
		p.api.Delay = defaultTimeout - time.Millisecond
		start := time.Now()
		for i := range 3 {
			p.asked(fmt.Sprint("doc", i), resultMinted)
		}
		if took := time.Since(start); took != 3*(defaultTimeout/2+p.api.Delay) {
			t.Errorf("took %s", took)
		}
		if until, _ := p.minter.HeldBack(clock.Now()); !until.IsZero() {
			t.Error("the API is held back")
		}
		time.Sleep(publishTime)
	})
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

// A lock whose answer got lost is given back.
func TestLockThatMayHaveBeenGot(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].member.store = lossyStore{store}
		fleet[0].want("doc", resultMinted)
		store.wantNothingLocked(t)
		fleet[1].want("doc", resultShared)
		fleet[0].api.Set(dwstest.Failing(422))
		fleet[0].wantFailure("bad", reasonRefused)
		store.wantNothingLocked(t)
	})
}

// panickingStore has a bug.
type panickingStore struct{ *fakeStore }

func (panickingStore) Put(context.Context, string, string, []byte, time.Duration) error {
	panic("a bug")
}

// A bug in a store does not end the process.
func TestStoreThatPanics(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].member.store = panickingStore{store}
		fleet[0].want("doc", resultMinted)
		fleet[0].want("doc", resultHit)
		time.Sleep(defaultTimeout + lockMargin)
	})
}

// What a purge covers does not come back by way of the store.
func TestPurgeReachesWhatIsAboutToBeShared(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		p := fleet[0]
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		var before, after *token
		wg.Go(func() { before, _, _ = p.get(t.Context(), testClaims("doc")) })
		time.Sleep(time.Second)
		p.purge("doc")
		wg.Go(func() { after, _, _ = p.get(t.Context(), testClaims("doc")) })
		wg.Wait()
		if before == nil || after == nil || before.jwt() == after.jwt() {
			t.Error("a token whose minting began before the purge comes back")
		}
		p.wantMints(2)
	})
}

// Three tokens, each rejected in turn: none of them comes back.
func TestRejectedTokensDoNotComeBack(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		p := fleet[0]
		first := p.want("doc", resultMinted)
		time.Sleep(time.Minute)
		store.fail(errors.New("a hiccup"))
		second, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil {
			t.Fatal(f)
		}
		synctest.Wait()
		store.fail(nil) // it still has the first
		time.Sleep(time.Minute)
		third, result, f := p.replace(t.Context(), testClaims("doc"), second.jwt())
		if f != nil || result != resultMinted || third.is(first.jwt()) || third.is(second.jwt()) {
			t.Errorf("%v, %s", f, result)
		}
	})
}

// At most once in five seconds a token is replaced, in the whole fleet; but
// one that is there already is handed out at once.
func TestReplacementsRestInTheWholeFleet(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		first := fleet[0].want("doc", resultMinted)
		fleet[1].want("doc", resultShared)
		another := func(p *poolTest, rejected *token) (*token, *failure) {
			tok, _, f := p.replace(t.Context(), testClaims("doc"), rejected.jwt())
			synctest.Wait()
			return tok, f
		}
		second, f := another(fleet[0], first)
		if f != nil {
			t.Fatal(f)
		}
		time.Sleep(time.Second)
		if tok, f := another(fleet[1], first); f != nil || tok.jwt() != second.jwt() {
			t.Errorf("got %v", f)
		}
		if _, f := another(fleet[1], second); f == nil || f.reason != reasonTooSoon {
			t.Errorf("got %v", f)
		}
		time.Sleep(replacementRest)
		third, f := another(fleet[1], second)
		if f != nil {
			t.Fatal(f)
		}
		if tok, f := another(fleet[0], second); f != nil || tok.jwt() != third.jwt() {
			t.Errorf("the first gateway: %v", f)
		}
		fleet[0].wantMints(3)
	})
}

// A store that never has what is wanted is not asked for ever.
func TestStoreFullOfRubbish(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].member.store = rubbishStore{store}
		start := time.Now()
		fleet[0].want("doc", resultMinted)
		if took := time.Since(start); took > 0 {
			t.Errorf("took %s", took)
		}
		store.mu.Lock()
		defer store.mu.Unlock()
		if got := strings.Count(strings.Join(store.calls, " "), "acquire"); got > maxUnwanted {
			t.Errorf("looked %d times", got)
		}
	})
}

// rubbishStore has a new entry at each look.
type rubbishStore struct{ *fakeStore }

func (s rubbishStore) Acquire(context.Context, string, string, time.Duration) (Acquired, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, "acquire")
	return Acquired{Entry: []byte("rubbish"), Version: s.next()}, nil
}

// An expired token of one's own does not hide a valid one in the store.
func TestShortTokenFromTheStoreBesideAnExpiredOne(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		old := fleet[1].want("doc", resultMinted)
		time.Sleep(59 * time.Minute)
		fleet[0].want("doc", resultMinted)
		time.Sleep(50 * time.Minute)
		fleet[1].cache.overflow.put(old)
		fleet[0].api.Set(dwstest.Failing(500))
		fleet[1].want("doc", resultStale)
	})
}

// A token that was rejected is replaced for the whole fleet, once.
func TestRejectedTokenInAFleet(t *testing.T) {
	withFleet(t, 3, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		first := fleet[0].want("doc", resultMinted)
		fleet[1].want("doc", resultShared)
		replace := func(p *poolTest, rejected string, want result) *token {
			t.Helper()
			tok, result, f := p.replace(t.Context(), testClaims("doc"), rejected)
			if f != nil || result != want || tok.is(rejected) {
				t.Fatalf("%v, %s, want %s", f, result, want)
			}
			return tok
		}
		second := replace(fleet[0], first.jwt(), resultMinted)
		// The second gateway has the old one, the third none.
		for _, p := range fleet[1:] {
			if tok := replace(p, first.jwt(), resultShared); tok.jwt() != second.jwt() {
				t.Error("another token than the one that was minted in its place")
			}
		}
		fleet[0].wantMints(2)
	})
}

// A gateway that has nothing cached does not fetch the very token from the
// store that the browser says was rejected.
func TestRejectedTokenThatOnlyTheStoreHas(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		first := fleet[0].want("doc", resultMinted)
		store.wantCalls(t, "acquire put")
		tok, result, f := fleet[1].replace(t.Context(), testClaims("doc"), first.jwt())
		if f != nil || result != resultMinted || tok.is(first.jwt()) {
			t.Fatalf("%v, %s", f, result)
		}
		synctest.Wait()
		store.wantCalls(t, "acquire acquire put")
		// At most once in a while.
		if _, _, f := fleet[1].replace(t.Context(), testClaims("doc"), tok.jwt()); f == nil || f.reason != reasonTooSoon {
			t.Errorf("got %v", f)
		}
		// If no other can be minted, it is not handed out after all.
		time.Sleep(time.Minute)
		fleet[0].api.Set(dwstest.Failing(500))
		fleet[1].purge("")
		if _, _, f := fleet[1].replace(t.Context(), testClaims("doc"), tok.jwt()); f == nil || f.reason != reasonUnavailable {
			t.Errorf("got %v", f)
		}
	})
}

// The rejected token comes from the store to somebody else in the same moment.
func TestRejectedTokenThatArrivesMeanwhile(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, _ *fakeStore) {
		first := fleet[0].want("doc", resultMinted)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { fleet[1].get(t.Context(), testClaims("doc")) })
			wg.Go(func() {
				tok, _, f := fleet[1].replace(t.Context(), testClaims("doc"), first.jwt())
				if f == nil && tok.is(first.jwt()) {
					t.Error("the rejected token again")
				}
			})
		}
		wg.Wait()
		fleet[0].wantMints(2)
	})
}

// A rotated key has names of its own; the lock under the old one is given back.
func TestRotatedKeyInAFleet(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].want("doc", resultMinted)
		rotated := mint.NewKey("pdf_live_rotated")
		fleet[0].member.key.Store(rotated)
		fleet[0].want("doc", resultHit) // until the new key has minted
		store.mu.Lock()
		store.calls = nil
		store.mu.Unlock()
		fleet[0].want("other", resultMinted)
		store.wantCalls(t, "acquire put release")
		fleet[1].want("other", resultMinted) // it has the old key
		fleet[1].member.key.Store(rotated)
		fleet[1].keys.promote(&rotated.ID)
		fleet[1].want("other", resultShared)
	})
}

// A purge is for this process, and leaves the store alone.
func TestPurgeLeavesTheStore(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].want("doc", resultMinted)
		store.wantCalls(t, "acquire put")
		if purged := fleet[0].purge("doc"); purged != 1 {
			t.Errorf("purged %d", purged)
		}
		store.wantCalls(t, "")
		fleet[0].want("doc", resultShared)
	})
}

func TestStoreOperationsAreCounted(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		before := gather(t, fleet[1].endpoint.Host)
		fleet[0].want("a", resultMinted)
		fleet[1].want("a", resultShared) // hit
		fleet[1].want("b", resultMinted) // locked, put
		fleet[1].api.Set(dwstest.Failing(422))
		fleet[1].wantFailure("c", reasonRefused) // locked, release
		fleet[1].api.Set(nil)
		store.fail(errors.New("down"))
		fleet[1].want("d", resultMinted) // error
		store.fail(ErrStoreUnavailable)
		fleet[1].want("e", resultMinted) // unavailable
		store.fail(nil)
		fleet[1].api.Delay = 50 * time.Millisecond
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("f", resultMinted) })
		synctest.Wait()
		fleet[1].asked("f", resultShared) // held, hit
		wg.Wait()
		want := map[string]float64{"acquire hit": 2, "acquire locked": 4, "acquire error": 1, "acquire unavailable": 1, "put ok": 3, "put error": 1, "release ok": 1}
		after := gather(t, fleet[1].endpoint.Host)
		for _, o := range storeOperations {
			name := fmt.Sprintf("store_operations_total %s %s", o.operation, o.outcome)
			got := after[name] - before[name]
			if o.outcome == "held" {
				if got < 1 {
					t.Errorf("%s: %v", name, got)
				}
			} else if got != want[o.operation+" "+o.outcome] {
				t.Errorf("%s: %v, want %v", name, got, want[o.operation+" "+o.outcome])
			}
		}
	})
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

func TestStoreIsAModule(t *testing.T) {
	t.Setenv(defaultKeyVariable, dwstest.Key)
	provision := func(storeJSON string) error {
		t.Helper()
		ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
		defer cancel()
		h := &Handler{Routes: []Route{{Paths: []string{"/d/:id"}}}, PoolOptions: PoolOptions{StoreRaw: json.RawMessage(storeJSON)}}
		err := h.Provision(ctx)
		if err == nil && h.member.store == nil {
			t.Error("provisioned without its store")
		}
		if cleanupErr := h.Cleanup(); cleanupErr != nil {
			t.Error(cleanupErr)
		}
		return err
	}
	if err := provision(`{"store": "stub"}`); err != nil {
		t.Error(err)
	}
	for storeJSON, want := range map[string]string{
		`{"store": "redis"}`:        "xcaddy build --with github.com/viewersession/caddy-viewer-session/redis",
		`{"store": "other"}`:        "build Caddy with the plugin that brings it",
		`{"name": "redis"}`:         `under the key "store"`,
		`"redis"`:                   `under the key "store"`,
		`{"store": "not_a_store"}`:  "is not a viewersession.Store",
		`{"store": "stub", "x": 1}`: `unknown field "x"`,
	} {
		if err := provision(storeJSON); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", storeJSON, err, want)
		}
	}
	for line, want := range map[string]string{
		"store":                      "store needs a name",
		"store redis":                "xcaddy build --with github.com/viewersession/caddy-viewer-session/redis",
		"store stub\n\t\tstore stub": "store is given twice",
	} {
		if _, err := parseTestHandler("viewer_session {\n\t\tdocument_path /d/:id\n\t\t" + line + "\n}"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
}

// Pools with different stores are different pools; the order of members in
// JSON makes no difference.
func TestStoreMakesPoolsDifferent(t *testing.T) {
	settings := func(storeJSON string) poolSettings {
		t.Helper()
		h := &Handler{Routes: []Route{{Paths: []string{"/d/:id"}}}, PoolOptions: PoolOptions{StoreRaw: json.RawMessage(storeJSON)}}
		s, _, err := h.settings()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	one := settings(`{"store": "stub", "prefix": "a"}`)
	if two := settings(`{ "prefix":"a","store":"stub" }`); two != one {
		t.Error("the order of members makes pools different")
	}
	if two := settings(`{"store": "stub", "prefix": "b"}`); two == one {
		t.Error("pools with different stores are one")
	}
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

// Strangers with made-up ids cost the store no locks: whoever has to wait for
// mint_rate looks once, and takes none before its turn.
func TestMadeUpIDsCostNoLocks(t *testing.T) {
	withFleetOf(t, 1, func(_ int, s *poolSettings) { s.rate, s.burst = 1, 1 }, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		p := fleet[0]
		var wg sync.WaitGroup
		for i := range 4000 {
			wg.Go(func() { _, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("made-up", i))) })
		}
		wg.Wait()
		synctest.Wait()
		mints := p.api.Count()
		if calls := store.countCalls(); calls["acquire"] != mints || calls["put"] != mints || calls["release"] != 0 || calls["look"] > 4000 || calls["look"] == 0 {
			t.Errorf("%d mints, and the store was asked %v", mints, calls)
		}
	})
	// The same ids, again and again, within the memory for refusals.
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		p := fleet[0]
		p.api.Set(dwstest.Failing(404))
		p.wantFailure("refused", reasonRefused)
		synctest.Wait()
		store.countCalls()
		for range 100 {
			p.wantFailure("refused", reasonRefused)
		}
		if calls := store.countCalls(); len(calls) != 0 {
			t.Errorf("a remembered refusal asks the store %v", calls)
		}
	})
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

func TestLooksWithoutATurnAreBounded(t *testing.T) {
	withFleetOf(t, 1, func(_ int, s *poolSettings) { s.rate, s.burst = 1, 1 }, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		slow := &slowStore{fakeStore: store}
		p := fleet[0]
		p.member.store = slow
		p.want("first", resultMinted)
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() { _, _, _ = p.get(t.Context(), testClaims(fmt.Sprint("made-up", i))) })
		}
		wg.Wait()
		synctest.Wait()
		if most := slow.most.Load(); most > 18 { // and two that have turns
			t.Errorf("%d look at once", most)
		}
	})
}

// What is in the store is used although mint_rate is used up, or the API is
// held back, and costs no turn.
func TestStoreIsUsedWithoutATurn(t *testing.T) {
	rates := func(gateway int, s *poolSettings) {
		switch gateway {
		case 1:
			s.rate, s.burst = 1, 1
		case 2:
			s.rate, s.burst = 0.001, 5
		}
	}
	withFleetOf(t, 4, rates, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		for i := range 30 {
			fleet[0].want(fmt.Sprint("doc", i), resultMinted)
		}
		p := fleet[1]
		p.want("other", resultMinted)
		for i := range 10 {
			p.want(fmt.Sprint("doc", i), resultShared)
		}
		// With turns, they are given back.
		p = fleet[2]
		for i := range 10 {
			p.want(fmt.Sprint("doc", 10+i), resultShared)
		}
		if left := p.turnsLeft(); left != 5 {
			t.Errorf("%d of 5 turns are left", left)
		}
		p = fleet[3]
		p.api.Set(dwstest.Failing(429, "Retry-After", "60"))
		p.wantFailure("fails", reasonThrottled)
		store.countCalls()
		p.want("doc20", resultShared)
		if calls := store.countCalls(); calls["look"] != 1 || len(calls) != 1 {
			t.Errorf("the store was asked %v", calls)
		}
	})
}

// What another gateway has in hand, and what is not admitted, costs no turn either.
func TestTurnsComeBackIfNothingIsSent(t *testing.T) {
	few := func(gateway int, s *poolSettings) {
		if gateway == 1 {
			s.rate, s.burst = 0.001, 3
		}
	}
	withFleetOf(t, 2, few, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Delay = time.Second
		var wg sync.WaitGroup
		wg.Go(func() { fleet[0].asked("doc", resultMinted) })
		synctest.Wait()
		p := fleet[1]
		wg.Go(func() { p.asked("doc", resultShared) })
		wg.Wait()
		if left := p.turnsLeft(); left != 3 {
			t.Errorf("%d of 3 turns are left", left)
		}
	})
}
