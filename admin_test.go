package viewersession

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// What the admin API says of a pool that is well, and of one that is not: what
// happened, since when, and whether users are served.
func TestStatusOfAPool(t *testing.T) {
	statusOf := func(p *poolTest) map[string]any {
		t.Helper()
		w := httptest.NewRecorder()
		if err := (adminAPI{}).Routes()[0].Handler.ServeHTTP(w, httptest.NewRequest("GET", "/viewer_session/", nil)); err != nil {
			t.Fatal(err)
		}
		if text := w.Body.String(); strings.Contains(text, dwstest.Key) || strings.Contains(text, "eyJ") {
			t.Errorf("a secret is told: %s", text)
		}
		var all struct{ Pools []map[string]any }
		if err := json.Unmarshal(w.Body.Bytes(), &all); err != nil {
			t.Fatal(err)
		}
		for _, one := range all.Pools {
			if one["endpoint"] == p.settings.endpoint {
				return one
			}
		}
		t.Fatalf("the pool is missing: %s", w.Body)
		return nil
	}
	count := func(status map[string]any, member, label string) float64 {
		return status[member].(map[string]any)[label].(float64)
	}
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		if got := statusOf(p); got["last_mint"] != nil || got["last_error"] != nil || got["back_off"] != nil || got["failing_since"] != nil || got["handlers"] != 1.0 || got["api_key"] != defaultAPIKey {
			t.Errorf("before anything happened: %v", got)
		}
		p.want("doc", resultMinted)
		if got := statusOf(p); got["last_mint"] == nil || count(got, "mints", "ok") != 1 || got["cached_tokens"] != 1.0 || got["failing_since"] != nil {
			t.Errorf("after a mint: %v", got)
		}
		time.Sleep(time.Minute)
		down := time.Now()
		p.api.Set(dwstest.Unreachable)
		for i := range 3 + 1 {
			p.wantFailure(fmt.Sprint("new", i), reasonUnavailable)
			time.Sleep(time.Second)
		}
		p.want("doc", resultHit)
		got := statusOf(p)
		last, _ := got["last_error"].(map[string]any)
		if got["failing_since"] != down.Format(time.RFC3339Nano) || last["reason"] != "unavailable" || !strings.Contains(fmt.Sprint(last["error"]), "cannot be reached") || count(got, "mints", "unavailable") < 3 {
			t.Errorf("while the API is down since %s: %v", down, got)
		}
		p.api.Set(dwstest.Failing(429, "Retry-After", "60"))
		time.Sleep(30 * time.Second)
		p.wantFailure("throttled", reasonThrottled)
		if held, _ := statusOf(p)["back_off"].(map[string]any); held["reason"] != "throttled" || held["until"] != time.Now().Add(time.Minute).Format(time.RFC3339Nano) {
			t.Errorf("throttled: %v", held)
		}
		p.api.Set(nil)
		time.Sleep(2 * time.Minute)
		p.want("more", resultMinted)
		if got := statusOf(p); got["failing_since"] != nil || got["back_off"] != nil || got["last_error"] == nil {
			t.Errorf("back again: %v", got)
		}
	})
	for path, method := range map[string]string{"/viewer_session/other": "GET", "/viewer_session/": "POST"} {
		if err := (adminAPI{}).Routes()[0].Handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil)); err == nil {
			t.Errorf("%s %s: no error", method, path)
		}
	}
}

// The log says when it is over, if it has said that it began.
func TestRecoveryIsLogged(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.DebugLevel)
		p.member.logger = zap.New(core)
		p.want("doc", resultMinted)
		if logs.Len() != 0 {
			t.Errorf("%v", logs.All())
		}
		p.api.Set(dwstest.Failing(500))
		p.wantFailure("new", reasonUnavailable)
		time.Sleep(10 * time.Minute)
		p.api.Set(nil)
		p.want("new", resultMinted)
		p.want("more", resultMinted)
		entries := logs.All()
		if len(entries) != 2 || entries[0].Message != "cannot mint a session token" || entries[1].Message != "session tokens are minted again" {
			t.Fatalf("%v", entries)
		}
		if got := entries[1].ContextMap()["after"]; got != 10*time.Minute {
			t.Errorf("after %v", got)
		}
	})
}
