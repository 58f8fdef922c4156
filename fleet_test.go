package viewersession

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

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
