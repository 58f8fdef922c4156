package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddyserver/caddy/v2"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

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
