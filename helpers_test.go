package viewersession

import (
	"encoding/base64"
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
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
