package viewersession

import (
	"encoding/base64"
	"encoding/json"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// testKey stands where an API key would.
const testKey = "pdf_live_test"

// testJWT returns a token with these claims. Nobody here can check its signature.
func testJWT(claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode(payload) + "." + encode([]byte("signature"))
}

// parseTestHandler parses a viewer_session directive.
func parseTestHandler(text string) (*Handler, error) {
	h := new(Handler)
	return h, h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text))
}

// resolveTest fills in all that a request needs, or says what is missing.
func resolveTest(template *askTemplate, repl *caddy.Replacer, documentID string) (ask, error) {
	var a ask
	missing := template.resolve(&a, repl, documentID)
	if f := missing.first(); f != nil {
		return ask{}, f
	}
	return a, nil
}

// testFlight is a flight for the token's key that somebody waits for.
func testFlight(t *token) *flight {
	return &flight{name: t.key()[len(account{}):], waiting: map[string]int{"client": 1}}
}

// newTestToken returns a token that lives until exp, by clocks that agree.
func newTestToken(key, jwt string, exp, askedExp int64, now time.Time) *token {
	until := func(exp int64) time.Duration { return time.Unix(exp, 0).Sub(now) }
	return newToken(key, jwt, exp, lifetime{clock.At(now), until(exp), until(askedExp)})
}
