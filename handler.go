package viewersession

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	// 1. Strip, always: no branch below may let a client's own value through.
	h.names.Strip(r, placedOn)
	if h.hasSessions {
		takeRejected(r)
	}

	// 2. Match.
	route, documentID := h.match(r)
	if route != nil && route.script && servesScript(r) {
		h.hideOwn(w)
		serveScript(w, r)
		return nil
	}
	if route == nil || route.script {
		if documentID != "" {
			h.noteMisfit(documentID)
		}
		return h.pass(nil, w, r, next)
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	info := newRequestInfo(r, repl)
	info.documentID = documentID
	if route.session {
		return h.serveSession(w, r, next, info, route.template)
	}
	if skipsToken(r) {
		h.bypass(info)
		return h.pass(&info.approval, w, r, next)
	}

	// 3. Resolve.
	var c claims.Claims
	if f := failureOfMissing(&c, route.template.Resolve(&c, repl, documentID)); f != nil {
		return h.withoutToken(w, r, next, info, f)
	}

	// 4. Get a token.
	token, result, failure := h.pool.get(r.Context(), &c)
	if failure != nil {
		return h.withoutToken(w, r, next, info, failure)
	}

	// 5. Inject. The token is taken off again in the end, so that error
	// routes and handlers further out do not get it.
	h.pool.stats.countRequest(result)
	info.set(result, token, nil)
	info.inject(r, &h.names, token.jwt())
	defer info.remove(r)
	return h.forward(w, r, next, info)
}
