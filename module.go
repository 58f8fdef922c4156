package viewersession

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/secret"
	"github.com/viewersession/caddy-viewer-session/internal/strip"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

// Defaults, as they are documented on the fields that they are for.
const (
	DefaultAPIKey           = "{env.NUTRIENT_DWS_VIEWER_API_KEY}" //nolint:gosec // a placeholder
	DefaultEndpoint         = "https://api.nutrient.io/viewer/sessions"
	DefaultRequestHeader    = "X-Viewer-Session"
	DefaultPermission       = "read"
	DefaultDocumentIDFormat = `[A-Za-z0-9_~-]{1,128}`
	DefaultTTL              = time.Hour
	DefaultTimeout          = 5 * time.Second
	DefaultMintRate         = 100.0
	DefaultMintBurst        = 1000
	DefaultCacheSize        = 64 << 20
)

const (
	minTTL, maxTTL         = time.Minute, 30 * 24 * time.Hour
	minTimeout, maxTimeout = 100 * time.Millisecond, time.Minute
	minCacheSize           = 1 << 20
	maxCacheSize           = 64 << 30

	minMintRate, maxMintRate = 0.001, 1e6

	// idleConnsPerHost keeps a burst of mints from dialing anew each time.
	idleConnsPerHost = 256

	// maxReplyHeaderBytes bounds the API's response headers.
	maxReplyHeaderBytes = 64 << 10

	transportModule = "http.reverse_proxy.transport.http"
)

// Handler stands in front of a web app. For requests to pages that show a
// document it gets a Nutrient DWS Viewer session token, cached or freshly
// minted, and hands it to the next handler in a request header or cookie.
// Whatever a client sends under that header's or cookie's name is removed from
// every request, also from those that get no token.
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

	// The API key of the DWS Viewer API: one placeholder, such as
	// `{env.NAME}` or `{file./path}`, so that the key itself stands in no
	// config. It is resolved when the config loads, and again when the API
	// refuses the key. Default: `{env.NUTRIENT_DWS_VIEWER_API_KEY}`
	APIKey string `json:"api_key,omitempty"`

	// The URL that tokens are minted at. Plain HTTP is refused except to
	// loopback. Default: `https://api.nutrient.io/viewer/sessions`
	Endpoint string `json:"endpoint,omitempty"`

	// Allow plain HTTP to an endpoint that is not loopback. The API key and
	// the tokens can then be read on the way.
	InsecureEndpoint bool `json:"insecure_endpoint,omitempty"`

	// How long minting a token may take in all, waiting for mint_rate
	// included: 100ms to 1m. Default: `5s`
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// How many tokens are minted at most. Document ids come from URLs, so
	// strangers choose them. Over it, requests queue for half of timeout at
	// most, and clients take turns. Default: 100 per second, 1000 at once.
	MintRate *MintRate `json:"mint_rate,omitempty"`

	// How many bytes of memory cached tokens may take, at least 1048576
	// (1 MiB). Default: 67108864 (64 MiB)
	CacheSize int64 `json:"cache_size,omitempty"`

	// How the API is reached: Caddy's own HTTP transport as in
	// reverse_proxy, with its trust pools, client certificates, network
	// proxies and resolvers. HTTP/3 and the PROXY protocol are refused.
	TransportRaw json.RawMessage `json:"transport,omitempty" caddy:"namespace=http.reverse_proxy.transport inline_key=protocol"`

	// Where gateways share their tokens, so that each is minted once for all.
	// Default: none; each gateway mints for itself.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=http.handlers.viewer_session.stores inline_key=store"`

	// Handlers with the same endpoint, api_key, timeout, mint_rate,
	// cache_size, store and transport share one pool of tokens, also across reloads.
	pool   *pool
	tenant *tenant

	names    strip.Names
	routes   []*route // session paths first
	idFormat func(string) bool
	log      logGate
	logger   *zap.Logger
}

// Route is a set of paths that show documents.
type Route struct {
	// Path patterns. `:id` is the document id, with literal text around it
	// in its segment allowed; `*` is one segment, as the last one the rest
	// (one segment or more). Literals match as in Caddy's path matcher:
	// decoded once, ignoring case. A trailing slash is ignored.
	Paths []string `json:"paths,omitempty"`

	// Path patterns at which the browser fetches a token. The app is asked
	// first, without a token: if it answers 204, the browser gets one as
	// JSON; any other answer is passed on. With its 204, the app may name
	// another document, permissions and user in the response headers
	// `X-Viewer-Document`, `X-Viewer-Permissions` and `X-Viewer-User`;
	// patterns without `:id` need the first. They are tried before the
	// paths of all routes.
	SessionPaths []string `json:"session_paths,omitempty"`

	// The document id from a placeholder, for patterns without `:id`.
	DocumentID string `json:"document_id,omitempty"`

	// What the API is asked for on this route, where it differs.
	TokenOptions
}

// TokenOptions is what the API is asked for. On a route, what is set overrides
// the handler's; claims are overridden one by one.
type TokenOptions struct {
	// What the token permits, sent as document_permissions and as
	// permissions. A value may hold placeholders, and several permissions
	// separated by spaces or commas. If none is left, the answer is 403. The
	// API knows read, write and download; a token that permits more than is
	// asked for is not used. Default: `read`
	Permissions []string `json:"permissions,omitempty"`

	// The user_id claim, with a placeholder in it. If it comes out empty, the
	// answer is 401. Default: none.
	UserID string `json:"user_id,omitempty"`

	// Placeholders whose values are further parts of the cache key, not sent
	// to the API: a token is never shared across different values.
	VaryBy []string `json:"vary_by,omitempty"`

	// Accept that everybody who opens a document gets the same token. It is
	// required for permissions beyond `read` without user_id or vary_by.
	Shared bool `json:"shared,omitempty"`

	// Further claims at the top of the request. Placeholders are replaced
	// inside strings, once; if one comes out empty, the answer is 403.
	// Numbers beyond ±(2^53-1) are refused, since Caddy reads configs into
	// doubles.
	Claims map[string]json.RawMessage `json:"claims,omitempty"`

	// Further claims in the document's entry.
	DocumentClaims map[string]json.RawMessage `json:"document_claims,omitempty"`

	// How long a token is asked to be valid: 1m to 30d. Default: `1h`
	TTL caddy.Duration `json:"ttl,omitempty"`

	// How long every token that is handed out is still good for, as long as
	// one can be minted: at most half of ttl. Default: a quarter of ttl.
	MinRemaining caddy.Duration `json:"min_remaining,omitempty"`

	// Allow user_id, permissions, claims and document_id to come from what
	// clients write: request headers, cookies, the body and the query. For
	// an authenticating proxy in front of Caddy.
	TrustRequestHeaders bool `json:"trust_request_headers,omitempty"`
}

// MintRate bounds how many tokens are minted. It is a token bucket.
type MintRate struct {
	// Mints per second.
	Rate float64 `json:"rate,omitempty"`

	// Mints at once. Default: ten times the rate, at least 1.
	Burst int `json:"burst,omitempty"`

	// No bound at all.
	Off bool `json:"off,omitempty"`
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
	settings, endpoint, err := h.poolSettings()
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
	h.tenant = newTenant(newConnections(mod.(http.RoundTripper), settings.timeout), store, h.logger, apiKey)
	h.pool, err = joinPool(settings, endpoint, h.tenant, clock.Now)
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
	return h.pool.leave(h.tenant)
}

// compile checks everything that can be checked without the machine that the
// config is for, and prepares what requests need. The Caddyfile adapter runs
// it as well, so that mistakes show when a config is adapted.
func (h *Handler) compile() error {
	var err error
	if h.names, err = h.newNames(); err != nil {
		return err
	}
	if h.idFormat, err = newIDFormat(h.DocumentIDFormat); err != nil {
		return err
	}
	switch h.OnError {
	case "", "fail", "pass":
	default:
		return fmt.Errorf("on_error %q: write fail or pass", h.OnError)
	}
	return h.compileRoutes()
}

// over returns the options completed with the handler's and the defaults.
func (o TokenOptions) over(base TokenOptions) TokenOptions {
	if o.Permissions == nil {
		o.Permissions = base.Permissions
	}
	if o.Permissions == nil {
		o.Permissions = []string{DefaultPermission}
	}
	if o.UserID == "" {
		o.UserID = base.UserID
	}
	if o.VaryBy == nil {
		o.VaryBy = base.VaryBy
	}
	o.Shared = o.Shared || base.Shared
	o.TrustRequestHeaders = o.TrustRequestHeaders || base.TrustRequestHeaders
	o.Claims = mergeClaims(base.Claims, o.Claims)
	o.DocumentClaims = mergeClaims(base.DocumentClaims, o.DocumentClaims)
	if o.TTL == 0 {
		o.TTL = base.TTL
	}
	if o.TTL == 0 {
		o.TTL = caddy.Duration(DefaultTTL)
	}
	if o.MinRemaining == 0 {
		o.MinRemaining = base.MinRemaining
	}
	if o.MinRemaining == 0 {
		o.MinRemaining = o.TTL / 4
	}
	return o
}

func mergeClaims(base, own map[string]json.RawMessage) map[string]json.RawMessage {
	merged := maps.Clone(base)
	if merged == nil {
		return own
	}
	maps.Copy(merged, own)
	return merged
}

// check refuses options that are wrong or that would hurt their user. They
// must be complete. documentID is the route's template, if it has one.
func (o TokenOptions) check(documentID string) error {
	if ttl := time.Duration(o.TTL); ttl < minTTL || ttl > maxTTL {
		return fmt.Errorf("ttl %s: write a duration from 1m to 30d", ttl)
	}
	if o.MinRemaining < 0 || o.MinRemaining > o.TTL/2 {
		return fmt.Errorf("min_remaining %s: write at most half of ttl (%s), or a longer ttl",
			time.Duration(o.MinRemaining), time.Duration(o.TTL/2))
	}
	if len(o.Permissions) == 0 {
		return errors.New("permissions: the list is empty, which the API would take for all permissions; name at least one")
	}
	if !slices.ContainsFunc(o.Permissions, hasPlaceholder) && len(splitPermissions(o.Permissions)) == 0 {
		return errors.New("permissions: only separators; name at least one")
	}
	if err := checkPermissionNames(o.Permissions); err != nil {
		return err
	}
	if err := o.checkShared(); err != nil {
		return err
	}
	for _, claims := range []map[string]json.RawMessage{o.Claims, o.DocumentClaims} {
		for _, name := range slices.Sorted(maps.Keys(claims)) {
			if err := checkClaim(name, claims[name]); err != nil {
				return err
			}
		}
	}
	if err := o.checkSources(documentID); err != nil {
		return err
	}
	return nil
}

func checkPermissionNames(permissions []string) error {
	for _, value := range permissions {
		if hasPlaceholder(value) {
			continue
		}
		for _, name := range splitPermissions([]string{value}) {
			for _, known := range knownPermissions {
				if name != known && editDistance(strings.ToLower(name), known) <= 2 {
					return fmt.Errorf("permissions: %q looks like a slip: write %s", name, known)
				}
			}
		}
	}
	return nil
}

// editDistance is how many letters must be added, removed or changed to make b
// out of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// checkShared refuses tokens that carry more than reading and are the same for
// everybody, unless that is said.
func (o TokenOptions) checkShared() error {
	if o.UserID != "" {
		names := placeholdersIn(o.UserID)
		if !slices.ContainsFunc(names, variesByRequest) {
			return fmt.Errorf("user_id %s is the same for everybody: give a placeholder that names the user, for example {http.auth.user.id}, or remove it", o.UserID)
		}
	}
	for _, template := range o.VaryBy {
		if !slices.ContainsFunc(placeholdersIn(template), variesByRequest) {
			return fmt.Errorf("vary_by %s is the same for all requests, so nothing varies by it", template)
		}
	}
	if o.Shared || o.UserID != "" || len(o.VaryBy) > 0 {
		return nil
	}
	for _, permission := range splitPermissions(o.Permissions) {
		if permission != DefaultPermission {
			return fmt.Errorf("permissions %s go beyond read, and everybody would get the same token: add user_id (or vary_by), or shared if that is what you want", strings.Join(o.Permissions, " "))
		}
	}
	return nil
}

// variesByRequest is false for placeholders that are the same for all requests.
func variesByRequest(placeholder string) bool {
	for _, prefix := range []string{"env.", "file.", "system.", "time."} {
		if strings.HasPrefix(placeholder, prefix) {
			return false
		}
	}
	return true
}

// checkSources refuses placeholders that a client can write, unless they are trusted.
func (o TokenOptions) checkSources(documentID string) error {
	if documentID != "" && !hasPlaceholder(documentID) {
		return fmt.Errorf("document_id %s holds no placeholder: give one that holds the document's id; for a fixed id set a variable (vars document ID) and write {http.vars.document}", documentID)
	}
	if o.TrustRequestHeaders {
		return nil
	}
	for _, name := range placeholdersIn(documentID) {
		if clientWritten(name, true) {
			return fmt.Errorf("document_id {%s} comes from what a client writes: use the path or the query, or trust_request_headers if a proxy in front of Caddy sets it", name)
		}
	}
	sources := map[string][]string{"user_id": {o.UserID}, "permissions": o.Permissions}
	for _, claims := range []map[string]json.RawMessage{o.Claims, o.DocumentClaims} {
		for name, raw := range claims {
			value, err := decodeJSON(raw)
			if err != nil {
				return fmt.Errorf("claim %q: %w", name, err)
			}
			sources["claim "+name] = append(sources["claim "+name], stringsIn(value, nil)...)
		}
	}
	for _, what := range slices.Sorted(maps.Keys(sources)) {
		for _, template := range sources[what] {
			for _, name := range placeholdersIn(template) {
				if !placeholderName.MatchString(name) {
					return fmt.Errorf(`%s: {%s} cannot be a placeholder; to send the brace, write \{`, what, name)
				}
				if clientWritten(name, false) {
					return fmt.Errorf("%s {%s} comes from what a client writes, so anybody could choose it: use what authentication in Caddy sets (for example {http.auth.user.id} or {http.reverse_proxy.header.Remote-User}), or trust_request_headers if a proxy in front of Caddy sets it", what, name)
				}
			}
		}
	}
	return nil
}

// placeholderName is what names of placeholders begin with.
var placeholderName = regexp.MustCompile(`^[A-Za-z_$]`)

// reservedClaims are set through options of their own, or by the handler.
var reservedClaims = map[string]string{
	"exp":                  "it is set by ttl",
	"user_id":              "it is set by user_id",
	"allowed_documents":    "it is made from the route",
	"document_id":          "it is made from the route",
	"document_permissions": "it is set by permissions",
	"permissions":          "it is set by permissions",
}

// checkClaim refuses names that are not for claims, and values that would not
// be sent as they are written.
func checkClaim(name string, raw json.RawMessage) error {
	if name == "" {
		return errors.New("claim: the name is empty")
	}
	for reserved, why := range reservedClaims {
		if strings.EqualFold(bareName(name), reserved) {
			return fmt.Errorf("claim %q is reserved: %s", name, why)
		}
	}
	value, err := decodeJSON(raw)
	if err == nil {
		err = checkText(name)
	}
	if err == nil {
		err = checkValue(value)
	}
	if err != nil {
		return fmt.Errorf("claim %q: %w", name, err)
	}
	return nil
}

// bareName is the name without what an API might overlook.
func bareName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '-':
			return '_'
		case r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return r
		default:
			return -1
		}
	}, name)
}

// poolSettings returns what decides which pool of tokens the handler uses.
func (h *Handler) poolSettings() (poolSettings, *url.URL, error) {
	s := poolSettings{
		apiKey:    h.APIKey,
		timeout:   time.Duration(h.Timeout),
		rate:      DefaultMintRate,
		burst:     DefaultMintBurst,
		cacheSize: h.CacheSize,
	}
	if s.apiKey == "" {
		s.apiKey = DefaultAPIKey
	}
	if err := secret.Check("api_key", s.apiKey); err != nil {
		return poolSettings{}, nil, err
	}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	if s.timeout < minTimeout || s.timeout > maxTimeout {
		return poolSettings{}, nil, fmt.Errorf("timeout %s: write a duration from 100ms to 1m", s.timeout)
	}
	if s.cacheSize == 0 {
		s.cacheSize = DefaultCacheSize
	}
	if err := checkCacheSize(s.cacheSize); err != nil {
		return poolSettings{}, nil, err
	}
	if h.MintRate != nil {
		var err error
		if s.rate, s.burst, err = h.MintRate.limits(); err != nil {
			return poolSettings{}, nil, err
		}
	}
	endpoint, err := h.parseEndpoint()
	if err != nil {
		return poolSettings{}, nil, err
	}
	s.endpoint = endpoint.String()
	if s.transport, err = h.transportJSON(endpoint.Scheme); err != nil {
		return poolSettings{}, nil, err
	}
	if h.StoreRaw != nil {
		s.store, err = h.storeJSON()
	}
	return s, endpoint, err
}

func checkCacheSize(size int64) error {
	if size < minCacheSize || size > maxCacheSize {
		return fmt.Errorf("cache_size of %d bytes: write a size from 1MiB to 64GiB", size)
	}
	return nil
}

func (m *MintRate) limits() (perSecond float64, burst int, err error) {
	if m.Off {
		if m.Rate != 0 || m.Burst != 0 {
			return 0, 0, errors.New("mint_rate: off stands alone, without a rate")
		}
		return math.Inf(1), 0, nil
	}
	if !(m.Rate >= minMintRate) || m.Rate > maxMintRate {
		return 0, 0, fmt.Errorf("mint_rate %v: write how many tokens may be minted per second, from 0.001 to 1000000, or off", m.Rate)
	}
	if m.Burst < 0 {
		return 0, 0, fmt.Errorf("mint_rate: a burst of %d: write 1 or more", m.Burst)
	}
	if m.Burst == 0 {
		return m.Rate, max(1, int(10*m.Rate)), nil
	}
	return m.Rate, m.Burst, nil
}

// parseEndpoint refuses addresses that would send the key in the clear.
func (h *Handler) parseEndpoint() (*url.URL, error) {
	text := h.Endpoint
	if text == "" {
		text = DefaultEndpoint
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Fragment != "" || strings.ContainsAny(text, "{}") {
		return nil, fmt.Errorf("endpoint %q is not a URL: write one such as %s", redactURL(text), DefaultEndpoint)
	}
	if u.User != nil {
		return nil, errors.New("endpoint: a URL with a user or password in it is refused, because it would stand in the config; the key goes into api_key")
	}
	switch u.Scheme {
	case "https":
	case "http":
		if !h.InsecureEndpoint && !isLoopback(u.Hostname()) {
			return nil, fmt.Errorf("endpoint %s is plain HTTP, so the API key could be read on the way: write https, or insecure_endpoint if you know better", text)
		}
	default:
		return nil, fmt.Errorf("endpoint %q: the scheme is https", text)
	}
	return u, nil
}

// redactURL hides what stands before an at sign.
func redactURL(text string) string {
	if at := strings.LastIndexByte(text, '@'); at >= 0 {
		return "…" + text[at:]
	}
	return text
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// transportJSON returns the transport's config with our own defaults filled in,
// in a form that is the same for the same settings.
func (h *Handler) transportJSON(scheme string) (string, error) {
	var t reverseproxy.HTTPTransport
	if h.TransportRaw != nil {
		var protocol struct {
			Protocol string `json:"protocol"`
		}
		if err := json.Unmarshal(h.TransportRaw, &protocol); err != nil {
			return "", fmt.Errorf("transport: %w", err)
		}
		if protocol.Protocol != "http" {
			return "", fmt.Errorf("transport %q: the only one is http", protocol.Protocol)
		}
		raw, err := withoutMember(h.TransportRaw, "protocol")
		if err != nil {
			return "", fmt.Errorf("transport: %w", err)
		}
		if err := caddy.StrictUnmarshalJSON(raw, &t); err != nil {
			return "", fmt.Errorf("transport http: %w", err)
		}
	}
	if slices.Contains(t.Versions, "3") {
		return "", errors.New("transport http: versions 3 is refused, because a reload would break off mints that are under way; use 1.1 or 2")
	}
	if t.ProxyProtocol != "" {
		return "", errors.New("transport http: proxy_protocol is refused, because a mint is not made for any one client")
	}
	if t.TLS != nil && scheme == "http" {
		return "", errors.New("transport http: TLS options have no effect on an endpoint with http: write https, or remove them")
	}
	if t.TLS != nil && t.TLS.InsecureSkipVerify && !h.InsecureEndpoint {
		return "", errors.New("transport http: tls_insecure_skip_verify lets anybody on the way read the API key: write tls_trust_pool with the authority's certificate, or insecure_endpoint if you know better")
	}
	if t.KeepAlive == nil {
		t.KeepAlive = new(reverseproxy.KeepAlive)
	}
	if t.KeepAlive.MaxIdleConnsPerHost == 0 {
		t.KeepAlive.MaxIdleConnsPerHost = idleConnsPerHost
	}
	if t.MaxResponseHeaderSize == 0 {
		t.MaxResponseHeaderSize = maxReplyHeaderBytes
	}
	raw, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("transport: %w", err)
	}
	return canonicalJSON(raw)
}

// storeJSON checks which store it is, and returns its config in a form that is
// the same for the same settings.
func (h *Handler) storeJSON() (string, error) {
	var store struct {
		Name string `json:"store"`
	}
	if err := json.Unmarshal(h.StoreRaw, &store); err != nil || store.Name == "" {
		return "", errors.New(`store: write an object with the store's name under the key "store", for example {"store": "redis", ...}`)
	}
	if err := checkStoreName(store.Name); err != nil {
		return "", err
	}
	return canonicalJSON(h.StoreRaw)
}

// checkStoreName says how to get a store that is not compiled in.
func checkStoreName(name string) error {
	if _, err := caddy.GetModule(storeNamespace + "." + name); err != nil {
		hint := "build Caddy with the plugin that brings it"
		if name == "redis" {
			hint = "build Caddy with it: xcaddy build --with github.com/viewersession/caddy-viewer-session/redis"
		}
		return fmt.Errorf("store %s is not in this Caddy: %s", name, hint)
	}
	return nil
}

// canonicalJSON sorts the members of objects, at any depth.
func canonicalJSON(raw json.RawMessage) (string, error) {
	members, err := decodeJSON(raw)
	if err != nil {
		return "", err
	}
	canonical, err := json.Marshal(members)
	return string(canonical), err
}

func withoutMember(object json.RawMessage, name string) (json.RawMessage, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(object, &members); err != nil {
		return nil, err
	}
	delete(members, name)
	return json.Marshal(members)
}

// resolveKey returns the API key that the placeholder stands for.
func resolveKey(placeholder string) (string, error) {
	key, err := secret.Resolve("api_key", placeholder)
	if err != nil {
		return "", fmt.Errorf("%w: put the Viewer API key of your DWS account there before Caddy starts", err)
	}
	if !wellFormedKey(key) {
		return "", fmt.Errorf("api_key %s holds spaces, quotes or other characters that no key has: it should be the key alone, without quotes, a name or Bearer in front", placeholder)
	}
	return key, nil
}

func wellFormedKey(key string) bool {
	return !strings.ContainsFunc(key, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"'`$", r)
	})
}

// warn tells the operator what is allowed, but likely a mistake.
func (h *Handler) warn(endpoint *url.URL) {
	if endpoint.Path == "" || endpoint.Path == "/" {
		h.logger.Warn("the endpoint has no path; the DWS Viewer API mints tokens at "+DefaultEndpoint, zap.String("endpoint", endpoint.String()))
	}
	warned := make(map[string]bool)
	for _, r := range h.routes {
		for _, permission := range r.ask.static.permissions {
			if !slices.Contains(knownPermissions, permission) && !warned[permission] {
				warned[permission] = true
				h.logger.Warn("the DWS Viewer API documents no such permission",
					zap.String("permission", permission), zap.Strings("documented", knownPermissions))
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
