package viewersession

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

func TestReloadKeepsTokensAndMintsUnderWay(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		kept := p.want("kept", resultMinted)
		p.api.Delay = 2 * time.Second
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, f := p.get(t.Context(), testClaims("under way")); f != nil {
				t.Error(f)
			}
		})
		synctest.Wait()
		p.wantMints(2)

		newAPI := new(dwstest.API)
		next := newMember(newAPI, nil, zap.NewNop(), "pdf_live_test")
		if same, err := joinPool(testSettings(t), testEndpoint, next, clock.Now); err != nil || same != p.pool {
			t.Fatalf("the new config got another pool (%v)", err)
		}
		if err := p.leave(p.member); err != nil {
			t.Fatal(err)
		}
		p.member = next
		wg.Wait()
		if tok := p.want("kept", resultHit); tok != kept {
			t.Error("the reload lost a token")
		}
		p.want("under way", resultHit)
		p.wantMints(2)
		p.want("new", resultMinted)
		p.wantMints(2)
		if newAPI.Count() != 1 {
			t.Error("the old config's transport is still in use")
		}
	})
}

func TestRefusedReloadChangesNothing(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("kept", resultMinted)
		refused := new(dwstest.API)
		next := newMember(refused, nil, zap.NewNop(), "pdf_live_other")
		if _, err := joinPool(testSettings(t), testEndpoint, next, clock.Now); err != nil {
			t.Fatal(err)
		}
		p.want("meanwhile", resultMinted)
		if err := p.leave(next); err != nil {
			t.Fatal(err)
		}
		p.want("kept", resultHit)
		p.want("after", resultMinted)
		p.wantMints(3)
		if refused.Count() != 0 {
			t.Error("a config that was refused has been asked")
		}
	})
}

func TestRequestsOutliveThePool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := &dwstest.API{Delay: time.Second}
		member := newMember(api, nil, zap.NewNop(), "pdf_live_test")
		p, err := joinPool(testSettings(t), testEndpoint, member, clock.Now)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, _, f := p.get(t.Context(), testClaims("under way")); f != nil {
				t.Errorf("a mint under way was lost: %v", f)
			}
		})
		synctest.Wait()
		if err := p.leave(member); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if _, _, f := p.get(t.Context(), testClaims("late")); f != nil {
			t.Errorf("a request of the old config that came late: %v", f)
		}
		if _, exists := pools.References(testSettings(t)); exists {
			t.Error("the pool is still there")
		}
	})
}
