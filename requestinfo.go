package viewersession

import (
	"net/http"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

// requestInfo is what is known of one request to a viewer route. If several
// viewer_session handlers see a request, they share it.
type requestInfo struct {
	documentID string
	result     result
	expiresAt  int64
	failure    *failure

	awaitsApproval bool // a session path has called the app

	placed []strip.Placed // tokens that are on the request now

	// Room for what a request usually needs, in one allocation.
	first   [1]strip.Placed
	header  [1]string // the header's value; never shared with the cache
	noStore noStoreWriter

	approval approvalWriter
}

// requestInfoKey is its key in the request's variables, which clients cannot write.
const requestInfoKey = "http.handlers.viewer_session"

// String keeps {http.vars.*} from printing what is inside.
func (i *requestInfo) String() string { return i.result.String() }

// requestInfoFrom returns the request's info, or nil if there is none yet.
func requestInfoFrom(r *http.Request) *requestInfo {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	i, _ := vars[requestInfoKey].(*requestInfo)
	return i
}

// placedOn returns the tokens that are on the request now.
func placedOn(r *http.Request) []strip.Placed {
	if i := requestInfoFrom(r); i != nil {
		return i.placed
	}
	return nil
}

// newRequestInfo returns the request's info, and adds it if there is none yet.
func newRequestInfo(r *http.Request, repl *caddy.Replacer) *requestInfo {
	vars := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	if i, ok := vars[requestInfoKey].(*requestInfo); ok {
		return i
	}
	i := new(requestInfo)
	i.placed = i.first[:0]
	vars[requestInfoKey] = i
	repl.Map(i.placeholder)
	if server, _ := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); server != nil && server.Logs == nil {
		return i // there is no access log
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Object("viewer_session", i))
	}
	return i
}

func (i *requestInfo) set(result result, t *token, f *failure) {
	i.result, i.failure, i.expiresAt = result, f, 0
	if t != nil {
		i.expiresAt = t.exp
	}
}

// bypass records that there is no token by rule. What another instance, or the
// route whose error is being handled, has recorded says more.
func (i *requestInfo) bypass() {
	if i.result == resultNone {
		i.result = resultBypass
	}
}

// MarshalLogObject says in the access log what the placeholders say. It runs
// when the entry is written.
func (i *requestInfo) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	if i.documentID != "" { // of pages that bring their own there is none
		enc.AddString("document_id", i.documentID)
	}
	enc.AddString("result", i.result.String())
	if i.expiresAt != 0 {
		enc.AddInt64("expires_at", i.expiresAt)
	}
	if i.failure != nil {
		enc.AddString("error", string(i.failure.reason))
	}
	return nil
}

// placeholder provides {http.viewer_session.*}.
func (i *requestInfo) placeholder(key string) (any, bool) {
	switch key {
	case "http.viewer_session.document_id":
		return i.documentID, true
	case "http.viewer_session.result":
		return i.result.String(), true
	case "http.viewer_session.expires_at":
		if i.expiresAt == 0 {
			return "", true
		}
		return i.expiresAt, true
	case "http.viewer_session.error":
		if i.failure == nil {
			return "", true
		}
		return string(i.failure.reason), true
	default:
		return nil, false
	}
}
