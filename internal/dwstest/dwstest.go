// Package dwstest has an API without a network, for tests under a fake clock.
package dwstest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Key takes the place of an API key.
const Key = "pdf_live_test"

// JWT returns a token with these claims. Nobody here can check its signature.
func JWT(claims map[string]any) string {
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	return JWTWithPayload(string(payload))
}

// JWTWithPayload returns a token with this payload, which need not be JSON.
func JWTWithPayload(payload string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + encode([]byte(payload)) + "." + encode([]byte("signature"))
}

// Token returns a token for reading that differs by serial.
func Token(serial int, exp int64) string {
	return JWT(map[string]any{"exp": exp, "jti": serial, "permissions": []string{"read"}})
}

// Request is what the API was asked for.
type Request struct {
	Context             context.Context
	Key, Document, User string
	Exp                 int64
	Body                string
}

// Answer is how the API answers.
type Answer func(Request) (*http.Response, error)

// API is a transport that answers as the API does.
type API struct {
	Answer Answer // nil: a token as asked for
	Delay  time.Duration
	Asked  []Request

	mu sync.Mutex
}

// RoundTrip implements http.RoundTripper.
func (a *API) RoundTrip(r *http.Request) (*http.Response, error) {
	var body struct {
		AllowedDocuments []struct {
			DocumentID string `json:"document_id"`
		} `json:"allowed_documents"`
		Exp    int64  `json:"exp"`
		UserID string `json:"user_id"`
	}
	sent, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(sent, &body); err != nil {
		return nil, err
	}
	asked := Request{Context: r.Context(), Key: r.Header.Get("Authorization"), User: body.UserID, Exp: body.Exp, Body: string(sent)}
	if len(body.AllowedDocuments) > 0 {
		asked.Document = body.AllowedDocuments[0].DocumentID
	}
	a.mu.Lock()
	a.Asked = append(a.Asked, asked)
	serial, answer, delay := len(a.Asked), a.Answer, a.Delay
	a.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	if answer == nil {
		answer = func(Request) (*http.Response, error) { return Grant(Token(serial, asked.Exp)) }
	}
	resp, err := answer(asked)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

// Set changes how the API answers.
func (a *API) Set(answer Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Answer = answer
}

// SetDelay changes how long the API takes.
func (a *API) SetDelay(delay time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.Delay = delay
}

// Count returns how often the API was asked.
func (a *API) Count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.Asked)
}

// Keys returns the keys that the API was asked with.
func (a *API) Keys() (keys []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, asked := range a.Asked {
		keys = append(keys, asked.Key)
	}
	return keys
}

// Respond answers with a status and a body.
func Respond(status int, body string) (*http.Response, error) {
	return &http.Response{StatusCode: status, Header: make(http.Header), Body: io.NopCloser(strings.NewReader(body))}, nil
}

// Grant answers with a token.
func Grant(jwt string) (*http.Response, error) { return Respond(201, fmt.Sprintf(`{"jwt":%q}`, jwt)) }

// Granting answers with tokens that hold these claims, a JSON object, and the exp
// asked for.
func Granting(claims string) Answer {
	return func(r Request) (*http.Response, error) {
		payload := strings.TrimSuffix(claims, "}") + fmt.Sprintf(`,"exp":%d}`, r.Exp)
		return Grant(JWTWithPayload(strings.Replace(payload, "{,", "{", 1)))
	}
}

// Failing answers with a status and header fields.
func Failing(status int, header ...string) Answer {
	return func(Request) (*http.Response, error) {
		resp, err := Respond(status, `{}`)
		for i := 0; i+1 < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp, err
	}
}

// Unreachable fails as a connection that is refused.
func Unreachable(Request) (*http.Response, error) {
	return nil, reverseproxy.NewDialError(&net.OpError{Op: "dial", Err: errors.New("connection refused")})
}

// Hanging does not answer.
func Hanging(r Request) (*http.Response, error) {
	<-r.Context.Done()
	return nil, r.Context.Err()
}

// Answering returns a handler that always answers the same.
func Answering(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Add(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Reply is the API's answer with a token that holds these claims.
func Reply(claims map[string]any) string { return fmt.Sprintf(`{"jwt":%q}`, JWT(claims)) }

// Transport returns Caddy's own transport with reply headers bounded as the
// gateway has it, and with these settings, as JSON.
func Transport(t testing.TB, settings ...string) http.RoundTripper {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	t.Cleanup(cancel)
	mod, err := ctx.LoadModuleByID("http.reverse_proxy.transport.http", json.RawMessage("{"+strings.Join(append(settings, `"max_response_header_size":65536`), ",")+"}"))
	if err != nil {
		t.Fatal(err)
	}
	return mod.(http.RoundTripper)
}
