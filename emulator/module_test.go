package emulator

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// asHandler adds what Caddy adds, and fails the test if the next handler is called.
func asHandler(t *testing.T, h *Handler) http.Handler {
	next := caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error {
		t.Error("the request went past the emulator")
		return nil
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Error(err)
		}
	})
}

func provision(t *testing.T, h *Handler) {
	t.Helper()
	if err := h.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
}

func cleanup(t *testing.T, h *Handler) {
	t.Helper()
	if err := h.Cleanup(); err != nil {
		t.Fatal(err)
	}
}

func TestReloadKeepsTokensCountsAndFault(t *testing.T) {
	before, after := &Handler{APIKey: testKey}, &Handler{APIKey: testKey}
	provision(t, before)
	token := mint(t, asHandler(t, before), testBody)
	serve(asHandler(t, before), request("PUT", "/emulator/fault", `{"mode":"empty"}`))

	refused := &Handler{APIKey: testKey, MaxTTL: -1}
	if err := refused.Provision(caddy.Context{}); err == nil {
		t.Error("a negative max_ttl was taken")
	}
	cleanup(t, refused)

	provision(t, after)
	cleanup(t, before)
	cleanup(t, before) // gives nothing back twice
	select {
	case <-after.emulator.closed:
		t.Error("the emulator was taken from the new config")
	default:
	}
	if rec := authenticate(asHandler(t, after), "doc1", token); rec.Code != http.StatusOK {
		t.Errorf("the token did not survive: %d %s", rec.Code, rec.Body)
	}
	if rec := authenticate(asHandler(t, before), "doc1", token); rec.Code != http.StatusOK {
		t.Errorf("a request still in the old config: %d %s", rec.Code, rec.Body)
	}
	if s := after.emulator.Stats(); s.Mints != 1 || s.Auths != 2 {
		t.Errorf("stats %+v", s)
	}
	if f := after.emulator.takeFault(nil); f.Mode != "empty" {
		t.Errorf("fault %+v", f)
	}

	cleanup(t, after)
	fresh := &Handler{APIKey: testKey}
	provision(t, fresh)
	defer fresh.Cleanup()
	if rec := authenticate(asHandler(t, fresh), "doc1", token); rec.Code != http.StatusForbidden {
		t.Errorf("the token outlived its emulator: %d", rec.Code)
	}
}

func TestOtherSettingsAreAnotherEmulator(t *testing.T) {
	var seen []*Emulator
	for _, h := range []*Handler{
		{}, {APIKey: "a"}, {AllowRemote: true}, {ServerURL: "http://localhost/"}, {MaxTTL: 1}, {Fault: Fault{Delay: 1}},
	} {
		provision(t, h)
		defer h.Cleanup()
		for _, other := range seen {
			if other == h.emulator {
				t.Errorf("%+v shares an emulator with other settings", h)
			}
		}
		seen = append(seen, h.emulator)
	}
}

func TestSettingsTakeEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		t.Setenv("EMULATOR_KEY", testKey)
		h := &Handler{
			APIKey: "{env.EMULATOR_KEY}", AllowRemote: true, ServerURL: "http://dws.test",
			MaxTTL: caddy.Duration(time.Minute), Fault: Fault{Delay: caddy.Duration(time.Second)},
		}
		provision(t, h)
		defer h.Cleanup()
		start := time.Now()
		r := request("POST", "/viewer/sessions", testBody)
		r.RemoteAddr = "192.0.2.1:5"
		rec, _ := serve(asHandler(t, h), r)
		if rec.Code != 201 || time.Since(start) != time.Second {
			t.Fatalf("status %d after %v", rec.Code, time.Since(start))
		}
		claims := payload(t, strings.Split(rec.Body.String(), `"`)[3])
		exp, iat := claims["exp"], claims["iat"]
		wantJSON(t, "claims", []any{claims["server_url"], exp, iat}, `["http://dws.test/",946684861,946684801]`)

		r = request("POST", "/viewer/sessions", testBody)
		r.Header.Set("Authorization", "Bearer pdf_live_other")
		if rec, _ = serve(asHandler(t, h), r); rec.Code != 401 {
			t.Errorf("another key: %d", rec.Code)
		}
	})
}

func TestKeyFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(testKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := &Handler{APIKey: "{file." + path + "}"}
	provision(t, h)
	defer h.Cleanup()
	mint(t, asHandler(t, h), testBody)
	if h.APIKey != "{file."+path+"}" {
		t.Errorf("the key stands in the config now: %q", h.APIKey)
	}
}

func TestLastCleanupEndsHanging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fault := Fault{Mode: "hang"}
		first, second := &Handler{Fault: fault}, &Handler{Fault: fault}
		provision(t, first)
		provision(t, second)
		done := false
		go func() {
			serve(asHandler(t, first), request("POST", "/viewer/sessions", testBody))
			done = true
		}()
		cleanup(t, first)
		synctest.Wait()
		if done {
			t.Error("a reload ended a request")
		}
		cleanup(t, second)
		synctest.Wait()
		if !done {
			t.Error("the request hangs on")
		}
	})
}

func TestProvisionRefuses(t *testing.T) {
	for _, tc := range []struct {
		handler Handler
		want    string
	}{
		{Handler{APIKey: "{env.EMULATOR_NOT_SET}"}, "api_key"},
		{Handler{APIKey: "{nonsense}"}, "api_key"},
		{Handler{APIKey: "{file.does-not-exist}"}, "api_key"},
		{Handler{ServerURL: "localhost:9091"}, "absolute URL"},
		{Handler{ServerURL: "/viewer"}, "absolute URL"},
		{Handler{ServerURL: "ftp://localhost/"}, "absolute URL"},
		{Handler{ServerURL: "http://localhost/?a=b"}, "absolute URL"},
		{Handler{ServerURL: "http://local host/"}, "absolute URL"},
		{Handler{MaxTTL: -1}, "max_ttl"},
		{Handler{Fault: Fault{Mode: "typo"}}, "unknown mode"},
	} {
		h := tc.handler
		if err := h.Provision(caddy.Context{}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: error %v, want %s", tc.handler, err, tc.want)
		}
		cleanup(t, &h)
	}
}
