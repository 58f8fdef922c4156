package viewersession

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
)

func TestRotatedKeyNeedsNoReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pdf_live_test")
	accepted := new(atomic.Value)
	accepted.Store("Bearer pdf_live_test")
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != accepted.Load() {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		old := p.want("doc", resultMinted)

		// The file changes first, then the API refuses the old key: the one
		// mint that finds out is sent again with the new key.
		write("pdf_live_test2")
		accepted.Store("Bearer pdf_live_test2")
		p.want("doc", resultHit) // nobody has noticed yet
		p.want("cold", resultMinted)
		p.wantMints(3)
		if tok := p.want("doc", resultMinted); tok.key() == old.key() {
			t.Error("a token of the old key was used under the new key")
		}

		// The API refuses the key first. It is held back; as soon as the
		// file has changed, the next request gets through at once.
		accepted.Store("Bearer pdf_live_test3")
		for i := range 5 {
			p.wantFailure(fmt.Sprint("cold", i), reasonKeyRefused)
		}
		if !p.minter.Failing("doc", clock.Now()) {
			t.Error("a refused key opens no back-off")
		}
		mints := p.api.Count()
		p.wantFailure("held", reasonKeyRefused)
		p.wantMints(mints)
		write("pdf_live_test3")
		p.want("held", resultMinted)
		p.want("cold0", resultMinted)
		if keys := p.api.Keys(); keys[len(keys)-1] != "Bearer pdf_live_test3" {
			t.Errorf("the last mint used the key %q", keys[len(keys)-1])
		}
	})
}

// A wrong key, in the file or in a new config, takes no valid token away: those
// of the key that minted last are used until another has proven itself.
func TestWrongNewKeyTakesNoTokenAway(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pdf_live_test")
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		kept := p.want("kept", resultMinted)
		p.api.Set(dwstest.Failing(401))
		write("pdf_live_wrong")
		p.wantFailure("cold", reasonKeyRefused)
		if tok := p.want("kept", resultHit); tok != kept {
			t.Error("another token")
		}
		// By a reload.
		settings := p.settings
		next := newMember(p.api, nil, zap.NewNop(), "pdf_live_wrong2")
		if _, err := joinPool(settings, testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		p.want("kept", resultHit)
		p.wantFailure("cold2", reasonKeyRefused)
		p.want("kept", resultHit)
		// The right one takes over with its first mint.
		p.api.Set(nil)
		write("pdf_live_right")
		time.Sleep(refusalMemory)
		p.want("cold", resultMinted)
		if tok := p.want("kept", resultMinted); tok.key() == kept.key() {
			t.Error("a token of the old key was used under the new key")
		}
	})
}

func TestKeyChangedByAReloadIsTriedAtOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer pdf_live_mended" {
				return dwstest.Failing(403)(r)
			}
			return dwstest.Grant(dwstest.Token(1, r.Exp))
		})
		for i := range 10 {
			p.wantFailure(fmt.Sprint("doc", i), reasonKeyRefused)
		}
		next := newMember(p.api, nil, zap.NewNop(), "pdf_live_mended")
		if _, err := joinPool(p.settings, testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		p.want("doc0", resultMinted)
		p.want("new", resultMinted)
	})
}

// withRotatedKey tests a pool that has a token for "doc", minted with a key that
// has been rotated since: another one has proven itself.
func withRotatedKey(t *testing.T, test func(t *testing.T, p *poolTest, old *token)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		old := p.want("doc", resultMinted)
		write("pdf_live_next")
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer pdf_live_next" {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(p.api.Count(), r.Exp))
		})
		p.want("other", resultMinted)
		test(t, p, old)
	})
}

// The new key's own token has expired, and the API hangs: the first request
// finds that out, and no other waits for the previous key's token.
func TestPreviousKeysTokenBehindAnExpiredOne(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.api.Set(func(dwstest.Request) (*http.Response, error) {
			return dwstest.Grant(dwstest.Token(p.api.Count(), time.Now().Unix()+90))
		})
		p.want("doc", resultMinted)
		time.Sleep(95 * time.Second) // it has not been swept
		p.api.Set(dwstest.Hanging)
		for i := range 5 {
			start := time.Now()
			if p.want("doc", resultStale) != old {
				t.Fatal("another token")
			}
			if waited := time.Since(start); waited != 0 && i > 0 {
				t.Errorf("request %d waited %s", i, waited)
			}
			time.Sleep(2 * time.Second)
		}
		time.Sleep(defaultTimeout) // renewals end
	})
}

// The key was rotated and has proven itself, and then the API fails: whoever
// has a valid token of the previous key is served with it, and does not wait.
func TestPreviousKeysTokensOutliveAnOutage(t *testing.T) {
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.api.Set(dwstest.Hanging)
		for i := range 5 {
			start := time.Now()
			if got := p.want("doc", resultStale); got != old {
				t.Error("another token")
			}
			if took := time.Since(start); i > 0 && took > 0 { // the first one finds out
				t.Errorf("request %d took %s", i, took)
			}
			time.Sleep(2 * time.Second)
		}
		p.api.Set(nil)
		time.Sleep(mint.BadNewsAge + 2*maxDelay)
		if got := p.want("doc", resultMinted); got == old {
			t.Error("the previous key's token, although another could be minted")
		}
		p.api.Set(dwstest.Hanging)
		time.Sleep(2 * time.Hour)
		p.wantFailure("doc", reasonTimeout) // and never past its exp
	})
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		if got := p.want("doc", resultMinted); got == old {
			t.Error("the previous key's token, with the API well")
		}
	})
}

// Rotated again before every document had a token of the key in between.
func TestTokensOutliveSeveralRotations(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	rotate := func(p *poolTest, key string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		if p == nil {
			return
		}
		p.api.Set(func(r dwstest.Request) (*http.Response, error) {
			if r.Key != "Bearer "+key {
				return dwstest.Failing(401)(r)
			}
			return dwstest.Grant(dwstest.Token(p.api.Count(), r.Exp))
		})
		p.want("of "+key, resultMinted)
	}
	rotate(nil, dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		old := p.want("doc", resultMinted)
		for i := range 3 {
			rotate(p, fmt.Sprint("pdf_live_", i))
			answer := p.api.Answer
			p.api.Set(dwstest.Failing(503))
			if got := p.want("doc", resultStale); got != old {
				t.Errorf("after %d rotations: another token", i+1)
			}
			p.api.Set(answer)
			time.Sleep(2 * maxDelay)
		}
		rotate(p, dwstest.Key) // and back to the first
		if got := p.want("doc", resultHit); got != old {
			t.Error("the first key's token is not used with the first key")
		}
	})
}

// A mint that began with an old key must not take the place of one that has
// proven a newer key meanwhile.
func TestLateMintDoesNotPromoteAnOldKey(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() { p.asked("slow", resultMinted) })
		synctest.Wait()
		next := mint.NewKey("pdf_live_next")
		p.member.key.Store(next)
		p.api.SetDelay(0)
		p.want("fast", resultMinted)
		wg.Wait()
		if *p.keys.current.Load() != next.ID {
			t.Error("the old key's tokens are looked up again")
		}
		p.want("fast", resultHit)
	})
}

// How often a refused key is compared with its file is bounded: strangers cause it.
func TestKeyChecksAreBounded(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(dwstest.Key)
	withPool(t, func(s *poolSettings) { s.apiKey = "{file." + file + "}" }, func(t *testing.T, p *poolTest) {
		refused := p.members.key()
		for range keyCheckRate {
			if p.members.Refresh(refused) {
				t.Fatal("another key")
			}
		}
		write("pdf_live_next")
		if p.members.Refresh(refused) {
			t.Error("the file is read more often than it should be")
		}
		time.Sleep(time.Second / keyCheckRate)
		if !p.members.Refresh(refused) {
			t.Error("the new key is not found")
		}
	})
}

// Whoever comes with a new key does not get what an old one mints meanwhile.
func TestNewKeyDoesNotJoinAnOldOnesMint(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() { p.asked("doc", resultMinted) })
		synctest.Wait()
		next := mint.NewKey("pdf_live_next")
		p.member.key.Store(next)
		p.api.SetDelay(0)
		p.want("fast", resultMinted)
		tok, _, f := p.get(t.Context(), testClaims("doc"))
		if f != nil || tok.key()[:len(mint.KeyID{})] != string(next.ID[:]) {
			t.Errorf("%v, another key's token", f)
		}
		wg.Wait()
	})
}

// After a rotation the API that works with the new key is believed when it
// refuses a document: a previous key's token would say what is not true any more.
func TestPreviousKeysTokenDoesNotStandInForARefusal(t *testing.T) {
	for status, want := range map[int]reason{422: reasonRefused, 404: reasonRefused, 409: reasonRefused} {
		withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
			p.want("proves", resultMinted) // the new key works
			p.api.Set(dwstest.Failing(status))
			for range 3 {
				p.wantFailure("doc", want)
				time.Sleep(refusalMemory)
			}
		})
	}
	withRotatedKey(t, func(t *testing.T, p *poolTest, old *token) {
		p.want("proves", resultMinted)
		p.api.Set(dwstest.Granting(`{"permissions": ["write"]}`))
		p.wantFailure("doc", reasonOverGranted)
		// And the honest case beside it.
		p.api.Set(dwstest.Failing(503))
		time.Sleep(refusalMemory)
		if got := p.want("doc", resultStale); got != old {
			t.Error("another token")
		}
	})
}
