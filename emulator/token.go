package emulator

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Refusals that the Web SDK knows by their text.
const (
	invalidToken = "Invalid token"
	tokenExpired = "Token has expired"
	tokenRevoked = "Token has been revoked" //nolint:gosec // a text
)

var tokenHeader = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`))

// keys sign tokens. Those signed with the revoked one are refused as revoked.
type keys struct{ current, revoked []byte }

func newSecret() []byte {
	secret := make([]byte, 32)
	rand.Read(secret)
	return secret
}

// Revoke has every token refused that has been given out so far.
func (e *Emulator) Revoke() {
	e.keys.Store(&keys{current: newSecret(), revoked: e.keys.Load().current})
}

// session is what a token grants.
type session struct {
	Expires   int64 `json:"exp"`
	Documents []struct {
		ID         string   `json:"document_id"`
		Live       []string `json:"permissions"`
		Documented []string `json:"document_permissions"`
	} `json:"allowed_documents"`
}

// sign returns a JSON Web Token (HS256) with the claims.
func (e *Emulator) sign(claims map[string]any) (string, error) {
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := tokenHeader + "." + base64.RawURLEncoding.EncodeToString(payload)
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature(e.keys.Load().current, signed)), nil
}

func signature(secret []byte, signed string) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(signed))
	return mac.Sum(nil)
}

// verify returns what the token grants, or why it is refused.
func (e *Emulator) verify(token string) (s session, refusal string) {
	dot := strings.LastIndexByte(token, '.')
	if dot < 0 {
		return s, invalidToken
	}
	signed := token[:dot]
	got, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	keys := e.keys.Load()
	switch {
	case err != nil:
		return s, invalidToken
	case hmac.Equal(got, signature(keys.revoked, signed)):
		return s, tokenRevoked
	case !hmac.Equal(got, signature(keys.current, signed)):
		return s, invalidToken
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(signed, tokenHeader+"."))
	if err != nil || json.Unmarshal(payload, &s) != nil {
		return s, invalidToken
	}
	if time.Now().Unix() >= s.Expires {
		return s, tokenExpired
	}
	return s, ""
}

// allowOrigins sets the CORS headers, and answers all requests but POST.
func allowOrigins(w http.ResponseWriter, r *http.Request, headers string) (done bool) {
	// The page is usually another origin than the API, and the SDK sends
	// credentials: a wildcard would not be accepted by the browser.
	w.Header().Add("Vary", "Origin")
	if origin := r.Header.Get("Origin"); origin != "" {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		w.Header().Set("Access-Control-Allow-Credentials", "true")
	}
	switch r.Method {
	case http.MethodOptions:
		w.Header().Set("Access-Control-Allow-Methods", http.MethodPost)
		w.Header().Set("Access-Control-Allow-Headers", headers)
		w.WriteHeader(http.StatusNoContent)
		return true
	case http.MethodPost:
		return false
	default:
		methodNotAllowed("POST, OPTIONS").write(w)
		return true
	}
}

// serveStandaloneAuth is the Web SDK's first, and only, call with a token for a
// document that the page brings.
func (e *Emulator) serveStandaloneAuth(w http.ResponseWriter, r *http.Request) {
	if allowOrigins(w, r, "authorization, content-type, pspdfkit-platform, pspdfkit-version") {
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, refusal := e.verify(token); refusal != "" {
		e.update(func(s *Stats) { s.AuthsRefused++ })
		apiError(http.StatusUnauthorized, refusal).write(w)
		return
	}
	e.update(func(s *Stats) { s.Auths++ })
	jsonAnswer(http.StatusOK, map[string]string{"wasmAuthToken": rand.Text(), "tenantId": "01ARZ3NDEKTSV4RRFFQ69G5FAV"}).write(w)
}

// serveAuth is the Web SDK's first call with a token.
func (e *Emulator) serveAuth(w http.ResponseWriter, r *http.Request, document string) {
	if allowOrigins(w, r, "content-type, pspdfkit-platform, pspdfkit-version, x-pspdfkit-token, x-pspdfkit-image-token") {
		return
	}
	permissions, refusal := e.authorize(http.MaxBytesReader(w, r.Body, maxBody), document)
	if refusal != "" {
		e.update(func(s *Stats) { s.AuthsRefused++ })
		answer{http.StatusForbidden, http.Header{"Content-Type": {"text/plain; charset=utf-8"}}, []byte(refusal)}.write(w)
		return
	}
	e.update(func(s *Stats) { s.Auths++ })
	jsonAnswer(http.StatusOK, map[string]any{"token": rand.Text(), "permissions": permissions}).write(w)
}

// authorize reads {"jwt": "..."} and returns what its session may do with the
// document, or why it is refused.
func (e *Emulator) authorize(body io.Reader, document string) (permissions []string, refusal string) {
	var login struct {
		JWT string `json:"jwt"`
	}
	if decodeOne(json.NewDecoder(body), &login) != nil {
		return nil, invalidToken
	}
	s, refusal := e.verify(login.JWT)
	if refusal != "" {
		return nil, refusal
	}
	for _, allowed := range s.Documents {
		if allowed.ID != document {
			continue
		}
		if permissions = slices.Concat(allowed.Live, allowed.Documented); permissions == nil {
			permissions = everything
		}
		return permissions, ""
	}
	return nil, invalidToken
}
