package viewersession

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	// 1. Strip, always: no branch below may let a client's own value through.
	h.carrier.strip(r)

	// 2. Match.
	route, documentID := h.match(r)
	if route == nil {
		return next.ServeHTTP(w, r)
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	visit := beginVisit(r, repl)
	visit.documentID = documentID
	if route.session {
		return h.serveSession(w, r, next, visit, route.ask)
	}
	if getsNone(r) {
		h.bypass(visit)
		return next.ServeHTTP(w, r)
	}

	// 3. Resolve.
	var ask ask
	missing := route.ask.resolve(&ask, repl, documentID)
	if f := missing.first(); f != nil {
		return h.withoutToken(w, r, next, visit, f)
	}

	// 4. Get a token.
	token, result, failure := h.pool.get(r.Context(), &ask)
	if failure != nil {
		return h.withoutToken(w, r, next, visit, failure)
	}

	// 5. Inject. The token is taken off again in the end, so that error
	// routes and handlers further out do not get it.
	h.pool.counters.countRequest(result)
	visit.set(result, token, nil)
	visit.inject(r, &h.carrier, token.jwt())
	defer visit.eject(r, &h.carrier)
	return h.serveUncached(w, r, next, visit)
}

// unresolvedHints say what is likely wrong where a request could not be
// resolved. Strangers can cause it, and the pool does not log it.
var unresolvedHints = map[reason]string{
	reasonNoUser: "no token for a request without a user id. If users are logged in, authentication likely runs after viewer_session: " +
		"it belongs before it, as with forward_auth or basic_auth in the default order. " +
		"Otherwise the placeholder's name is misspelt, or the auth server's answer has no such header",
	reasonNoPermission: "no token for a request without any permission: the placeholders in permissions came out empty",
	reasonNoClaim:      "no token for a request with an empty claim: a placeholder in it is not set, or its name is misspelt",
	reasonAppAnswer: "no token for a browser that the app said yes to: with its 204 on a session path it names the document in X-Viewer-Document, " +
		"unless the path has :id, and may name the user in X-Viewer-User, each of them once",
}

// bypass records that a request gets no token by rule, unless another instance
// or the route whose error is being handled has recorded more.
func (h *Handler) bypass(visit *visit) {
	visit.bypass()
	if visit.result == resultBypass {
		h.pool.counters.countRequest(resultBypass)
	}
}

// withoutToken ends a viewer request for which there is no token: with an
// error, or by passing it on as it is.
func (h *Handler) withoutToken(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, visit *visit, f *failure) error {
	if h.OnError == "pass" && f.reason != reasonClientGone {
		h.note(visit, f)
		return h.serveUncached(w, r, next, visit)
	}
	return h.fail(w, visit, f)
}

// note records why there is no token.
func (h *Handler) note(visit *visit, f *failure) {
	h.pool.counters.countRequest(resultError)
	visit.set(resultError, nil, f)
	if hint, ok := unresolvedHints[f.reason]; ok {
		if suppressed, ok := h.log.open(f.reason, time.Now()); ok {
			h.logger.Warn(hint, zap.Error(f), zap.Int("suppressed", suppressed))
		}
	}
}

// fail answers with an error.
func (h *Handler) fail(w http.ResponseWriter, visit *visit, f *failure) error {
	h.note(visit, f)
	w.Header().Set("Cache-Control", "no-store")
	status := f.status()
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(f.retryAfter(h.pool.now())))
	}
	return caddyhttp.Error(status, fmt.Errorf("viewer_session: %w", f))
}

// visit is what is known of one request to a viewer route. Where the handler
// stands twice in a chain, both share it.
type visit struct {
	documentID string
	result     result
	expiresAt  int64
	failure    *failure
	rejected   string // the token that a browser says was rejected

	injected []injected // and not been taken off yet

	// Room for what a request usually needs, so that it is allocated at once.
	first  [1]injected
	header [1]string // the header's value; never shared with the cache
	guard  cacheGuard
}

// visitKey is where the visit lies in the request's variables. Clients cannot
// write them.
const visitKey = "http.handlers.viewer_session"

// String keeps {http.vars.*} from printing what is inside.
func (v *visit) String() string { return v.result.String() }

// visitOf returns the request's visit, or nil if it has not begun.
func visitOf(r *http.Request) *visit {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	v, _ := vars[visitKey].(*visit)
	return v
}

// beginVisit returns the request's visit, and begins it if that has not been done.
func beginVisit(r *http.Request, repl *caddy.Replacer) *visit {
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if v, ok := vars[visitKey].(*visit); ok {
		return v
	}
	v := new(visit)
	v.injected = v.first[:0]
	vars[visitKey] = v
	repl.Map(v.placeholder)
	if server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); server != nil && server.Logs == nil {
		return v // there is no access log
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Object("viewer_session", v))
	}
	return v
}

func (v *visit) set(result result, t *token, f *failure) {
	v.result, v.failure, v.expiresAt = result, f, 0
	if t != nil {
		v.expiresAt = t.exp
	}
}

// bypass records that there is no token by rule. What another instance, or the
// route whose error is being handled, has recorded says more.
func (v *visit) bypass() {
	if v.result == resultNone {
		v.result = resultBypass
	}
}

// MarshalLogObject says in the access log what the placeholders say. It runs
// when the entry is written.
func (v *visit) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("document_id", v.documentID)
	enc.AddString("result", v.result.String())
	if v.expiresAt != 0 {
		enc.AddInt64("expires_at", v.expiresAt)
	}
	if v.failure != nil {
		enc.AddString("error", string(v.failure.reason))
	}
	return nil
}

// placeholder provides {http.viewer_session.*}.
func (v *visit) placeholder(key string) (any, bool) {
	switch key {
	case "http.viewer_session.document_id":
		return v.documentID, true
	case "http.viewer_session.result":
		return v.result.String(), true
	case "http.viewer_session.expires_at":
		if v.expiresAt == 0 {
			return "", true
		}
		return v.expiresAt, true
	case "http.viewer_session.error":
		if v.failure == nil {
			return "", true
		}
		return string(v.failure.reason), true
	default:
		return nil, false
	}
}
