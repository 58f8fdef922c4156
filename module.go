package viewersession

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/mint"
	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Handler sits in front of a web app. For requests to pages that show a document
// it gets a Nutrient DWS Viewer session token, cached or freshly minted, and
// hands it to the next handler in a request header or cookie. Whatever a client
// sends under the name of that header or cookie is removed from every request,
// including those that get no token.
//
// What is matched is the path that the client asked for, before rewrites.
//
// On session paths it is the browser that gets the token, as JSON, and the app
// that decides: it is asked first.
//
// Errors are passed on with these statuses: 401 if user_id is empty; 403 if no
// permission is left or a claim is empty, or if a page of another site asks for
// a session; 502 if the API cannot be reached or refuses, or if the app names
// no document for a session, or if the token permits more than was asked for; 503 with Retry-After over mint_rate or if the API asks to slow down;
// 504 if minting took too long.
//
// It sets these placeholders on viewer routes:
//
// Placeholder | Description
// ------------|---------------
// `{http.viewer_session.document_id}` | The document's id.
// `{http.viewer_session.result}` | Where the token came from: `hit`, `renewing`, `minted`, `shared`, `stale`; `bypass` if the request gets none by rule; `error`.
// `{http.viewer_session.expires_at}` | When the token expires, in Unix seconds.
// `{http.viewer_session.error}` | Why there is no token: `no_user`, `no_permission`, `no_claim`, `rate_limited`, `throttled`, `key_refused`, `rejected`, `unavailable`, `invalid_reply`, `over_granted`, `timeout` or `client_gone`; on session paths also `cross_site`, `app_answer` or `too_soon`.
type Handler struct {
	// Which requests get a token, and for which document. The first route
	// that matches wins. Without routes, document_id is required, and every
	// request for which it gives an id gets a token.
	Routes []Route `json:"routes,omitempty"`

	// The path at which the handler itself serves the module for the page,
	// viewer-session.js, to GET and HEAD. It comes before all routes, and
	// takes neither :id nor wildcards. Default: it is not served.
	ScriptPath string `json:"script_path,omitempty"`

	// The document id for all routes whose patterns hold no `:id`, from a
	// placeholder, for example `{http.request.uri.query.doc}`. It is taken
	// as it is, never decoded. A request for which it is empty gets no token.
	DocumentID string `json:"document_id,omitempty"`

	// The regular expression that a document id must match from its first
	// to its last character. A request with another id does not match the
	// route. Default: `[A-Za-z0-9_~-]{1,128}`
	DocumentIDFormat string `json:"document_id_format,omitempty"`

	// What the API is asked for, on every route that does not say otherwise.
	TokenOptions

	// The request header that carries the token to the next handler.
	// Default: `X-Viewer-Session`, or none if request_cookie is set.
	RequestHeader string `json:"request_header,omitempty"`

	// The request cookie that carries the token to the next handler.
	// Default: none.
	RequestCookie string `json:"request_cookie,omitempty"`

	// Leave caching headers alone. By default, responses to requests with a
	// token get `Cache-Control: private, no-store` unless they say no-store
	// themselves, and conditional request headers are removed.
	AllowStore bool `json:"allow_store,omitempty"`

	// What happens to a viewer request for which there is no token: `fail`
	// answers with an error; `pass` calls the next handler without a token,
	// with `{http.viewer_session.error}` set. Default: `fail`
	OnError string `json:"on_error,omitempty"`

	// How tokens are minted and kept. Handlers for which all of it is the same
	// share one pool of tokens, also across reloads.
	PoolOptions

	pool   *pool
	member *member

	names strip.Names
	router
	log    logLimiter
	logger *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.viewer_session",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision checks the config and joins the pool of tokens that belongs to it.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	if err := h.compile(); err != nil {
		return err
	}
	settings, endpoint, err := h.settings()
	if err != nil {
		return err
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	apiKey, err := resolveKey(settings.apiKey)
	if err != nil {
		return err
	}
	mod, err := ctx.LoadModuleByID(transportModule, json.RawMessage(settings.transport))
	if err != nil {
		return fmt.Errorf("transport: %w", err)
	}
	store, err := h.loadStore(ctx)
	if err != nil {
		return err
	}
	h.warn(endpoint)
	h.member = newMember(mint.NewTransport(mod.(http.RoundTripper), settings.timeout), store, h.logger, apiKey)
	h.pool, err = joinPool(settings, endpoint, h.member, clock.Now)
	return err
}

func (h *Handler) loadStore(ctx caddy.Context) (Store, error) {
	if h.StoreRaw == nil {
		return nil, nil
	}
	mod, err := ctx.LoadModule(h, "StoreRaw")
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	store, ok := mod.(Store)
	if !ok {
		return nil, fmt.Errorf("store: the module %T is not a viewersession.Store", mod)
	}
	return store, nil
}

// Cleanup leaves the pool. It also runs after a Provision that failed.
func (h *Handler) Cleanup() error {
	if h.pool == nil {
		return nil
	}
	return h.pool.leave(h.member)
}

// compile checks everything that can be checked without the machine that the
// config is for, and prepares what requests need. The Caddyfile adapter runs
// it as well, so that mistakes show when a config is adapted.
func (h *Handler) compile() error {
	var err error
	if h.names, err = newNames(h.RequestHeader, h.RequestCookie); err != nil {
		return err
	}
	switch h.OnError {
	case "", "fail", "pass":
	default:
		return fmt.Errorf("on_error %q: write fail or pass", h.OnError)
	}
	h.router, err = newRouter(h.Routes, h.ScriptPath, h.DocumentID, h.DocumentIDFormat, h.TokenOptions)
	return err
}

// warn logs what is allowed, but likely a mistake.
func (h *Handler) warn(endpoint *url.URL) {
	if endpoint.Path == "" || endpoint.Path == "/" {
		h.logger.Warn("the endpoint has no path; the DWS Viewer API mints tokens at "+defaultEndpoint, zap.String("endpoint", endpoint.String()))
	}
	warned := make(map[string]bool)
	for _, r := range h.routes {
		for _, permission := range r.template.Static.Permissions {
			if !slices.Contains(dws.KnownPermissions, permission) && !warned[permission] {
				warned[permission] = true
				h.logger.Warn("permission not documented by the DWS Viewer API",
					zap.String("permission", permission), zap.Strings("documented", dws.KnownPermissions))
			}
		}
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
