package viewersession

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
)

// forward calls the next handler, and keeps its response out of caches unless the
// config leaves that to the app.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, info *requestInfo) error {
	if h.AllowStore {
		return h.pass(&info.approval, w, r, next)
	}
	writer := &info.noStore
	if writer.ResponseWriter != nil {
		writer = new(noStoreWriter) // the room in info is taken
	}
	hidden := h.hideApproval(&info.approval, w, r)
	replaced, err := writer.serve(hidden, r, next)
	if hidden != w {
		dropApproval(w.Header()) // what comes as trailers
	}
	if replaced {
		h.noteReplaced()
	}
	return err
}

// noteReplaced tells the operator that pages with tokens may be stored.
func (h *Handler) noteReplaced() {
	if suppressed, ok := h.log.allow(reasonReplaced, time.Now()); ok {
		h.logger.Warn("Cache-Control of a viewer page was replaced, so a cache may store it; a header block with one deferred field (-Name, or > in front) "+
			"defers all of its fields: set Cache-Control in a block of its own, or with defaults (?Cache-Control)", zap.Int("suppressed", suppressed))
	}
}

// unresolvedHints say what is likely wrong where a request could not be
// resolved. Strangers can cause it, and the pool does not log it.
var unresolvedHints = map[reason]string{
	reasonNoUser: "no token for a request without a user id. If users are logged in, authentication likely runs after viewer_session: " +
		"it belongs before it, as with forward_auth or basic_auth in the default order. " +
		"Otherwise the placeholder's name is misspelled, or the auth server's answer has no such header",
	reasonNoPermission: "no token for a request without any permission: the placeholders in permissions came out empty, or the app's X-Viewer-Permissions, or a vary_by without which everybody would share the token",
	reasonNoClaim:      "no token for a request with an empty claim: a placeholder in it is not set, or its name is misspelled",
	reasonAppAnswer: "no token although the app approved the session: with its 204 on a session path it names the document in X-Viewer-Document, " +
		"unless the path has :id, and may name the user in X-Viewer-User, each of them once. If the page brings its own document, " +
		"session_path belongs in the block with app_provided, and the app names neither a document nor permissions",
}

// notUTF8Hint takes the place of another where a value cannot be sent.
const notUTF8Hint = "no token for a request with a value that is not valid UTF-8: the API takes JSON, so the user id, permissions and claims must be text; " +
	"some auth servers send Latin-1 unless they are told otherwise"

// bypass records that a request gets no token by rule, unless another instance
// or the route whose error is being handled has recorded more.
func (h *Handler) bypass(info *requestInfo) {
	info.bypass()
	if info.result == resultBypass {
		h.pool.stats.countRequest(resultBypass)
	}
}

// withoutToken ends a viewer request for which there is no token: with an
// error, or by passing it on as it is.
func (h *Handler) withoutToken(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, info *requestInfo, f *failure) error {
	if h.OnError == "pass" && f.reason != reasonClientGone {
		h.note(info, f)
		return h.forward(w, r, next, info)
	}
	return h.fail(w, info, f)
}

// note records why there is no token.
func (h *Handler) note(info *requestInfo, f *failure) {
	h.pool.stats.countRequest(resultError)
	info.set(resultError, nil, f)
	hint, ok := unresolvedHints[f.reason]
	if errors.Is(f, claims.ErrNotUTF8) {
		hint = notUTF8Hint
	}
	if ok {
		if suppressed, ok := h.log.allow(f.reason, time.Now()); ok {
			h.logger.Warn(hint, zap.Error(f), zap.Int("suppressed", suppressed))
		}
	}
}

// noteMisfit tells the operator of a path that fits but for its id.
func (h *Handler) noteMisfit(id string) {
	if suppressed, ok := h.log.allow(reasonMisfit, time.Now()); ok {
		h.logger.Warn("no token for a path whose id does not fit document_id_format; to give such ids one, set document_id_format",
			zap.String("document_id", fmt.Sprintf("%.60s", id)), zap.Int("suppressed", suppressed))
	}
}

// fail answers with an error.
func (h *Handler) fail(w http.ResponseWriter, info *requestInfo, f *failure) error {
	h.note(info, f)
	h.hideOwn(w)
	w.Header().Set("Cache-Control", "no-store")
	status := f.reason.status()
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(f.retryAfter(h.pool.now())))
	}
	return caddyhttp.Error(status, fmt.Errorf("viewer_session: %w", f))
}
