package viewersession

import (
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/pattern"
	"github.com/viewersession/caddy-viewer-session/internal/secret"
)

func init() {
	// After request_header, and so after basic_auth and forward_auth, which
	// say who the user is, and before everything that answers.
	httpcaddyfile.RegisterDirective("viewer_session", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("viewer_session", httpcaddyfile.After, "request_header")
}

// parseCaddyfile sets up the directive. It is not registered as a handler
// directive, because those take a matcher.
func parseCaddyfile(helper httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	h := new(Handler)
	if err := h.UnmarshalCaddyfile(helper.Dispenser); err != nil {
		return nil, err
	}
	return helper.NewRoute(nil, h), nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	viewer_session {
//		document_path <pattern...> [{
//			document_id  <placeholder>
//			app_provided
//			session_path <pattern...>
//			<token options>
//		}]
//		session_path       <pattern...>
//		document_id        <placeholder>
//		document_id_format <regexp>
//		script_path        <path>
//
//		<token options>
//
//		request_header <name>
//		request_cookie <name>
//		allow_store
//		on_error       fail|pass
//
//		api_key    <placeholder>
//		endpoint   <url>
//		insecure_endpoint
//		timeout    <duration>
//		mint_rate  <per second> [<burst>] | off
//		cache_size <size>
//		store      <module> {
//			...
//		}
//		transport  http {
//			...
//		}
//	}
//
// where the token options are, for all routes or within the block of one:
//
//	permissions   <name...>
//	user_id       <placeholder>
//	vary_by       <placeholder...>
//	shared
//	claim         <name> <value>
//	claim_json    <name> <json>
//	document_claim      <name> <value>
//	document_claim_json <name> <json>
//	ttl           <duration>
//	min_remaining <duration>
//	trust_request_headers
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if d.NextArg() {
		if arg := d.Val(); arg == "*" || strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "@") {
			return d.Errf("viewer_session takes no matcher (%s): it must see every request, to remove what clients send under the token's name; say which paths get a token with document_path inside its block", arg)
		}
		return d.Err("viewer_session takes no argument: options go into its block") // not quoted: it may be the key
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		switch option {
		case "document_path":
			if err := h.unmarshalRoute(d); err != nil {
				return err
			}
			continue
		case "session_path":
			var route Route
			if err := route.unmarshalSessionPath(d); err != nil {
				return err
			}
			h.Routes = append(h.Routes, route)
			continue
		}
		if err := refuseRepeated(d, seen, option); err != nil {
			return err
		}
		known, err := h.TokenOptions.unmarshalOption(d, option)
		if !known && err == nil {
			known, err = h.unmarshalOption(d, option)
		}
		if err != nil {
			return err
		}
		if !known {
			if meant := likelyMeant(option, directiveOptions); meant != "" {
				return d.Errf("unrecognized subdirective %q of viewer_session: did you mean %s?", option, meant)
			}
			last := len(directiveOptions) - 1
			return d.Errf("unrecognized subdirective %q of viewer_session; it takes %s and %s", option, strings.Join(directiveOptions[:last], ", "), directiveOptions[last])
		}
	}
	// Mistakes that only show in the whole are reported now, not when the config
	// is loaded somewhere else.
	if err := h.compile(); err != nil {
		return d.WrapErr(err)
	}
	if _, _, err := h.settings(); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// unmarshalRoute reads one document_path with its block.
func (h *Handler) unmarshalRoute(d *caddyfile.Dispenser) error {
	route := Route{Paths: d.RemainingArgs()}
	if len(route.Paths) == 0 {
		return d.Err("document_path needs a path pattern, for example: document_path /documents/:id")
	}
	for _, path := range route.Paths {
		if _, err := pattern.Parse(path); err != nil {
			return d.WrapErr(err)
		}
	}
	seen := make(map[string]bool)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if err := refuseRepeated(d, seen, option); err != nil {
			return err
		}
		known, err := route.TokenOptions.unmarshalOption(d, option)
		switch option {
		case "document_id":
			known, err = true, oneArg(d, &route.DocumentID)
		case "app_provided":
			known, err = true, noArg(d)
			route.AppProvided = true
		case "session_path":
			known, err = true, route.unmarshalSessionPath(d)
		}
		if err != nil {
			return err
		}
		if !known {
			if meant := likelyMeant(option, routeOptions); meant != "" && !slices.Contains(directiveOptions, option) {
				return d.Errf("unrecognized subdirective %q of document_path: did you mean %s?", option, meant)
			}
			return d.Errf("unrecognized subdirective %q of document_path: it takes document_id, app_provided, session_path and what the API is asked for (permissions, user_id, ttl and the like); everything else belongs one level up", option)
		}
	}
	h.Routes = append(h.Routes, route)
	return nil
}

func (r *Route) unmarshalSessionPath(d *caddyfile.Dispenser) error {
	paths := d.RemainingArgs()
	if len(paths) == 0 {
		return d.Err("session_path needs a path pattern, for example: session_path /documents/:id/session")
	}
	for _, path := range paths {
		if _, err := pattern.Parse(path); err != nil {
			return d.WrapErr(err)
		}
	}
	r.SessionPaths = append(r.SessionPaths, paths...)
	if d.NextBlock(d.Nesting()) {
		return d.Err("session_path takes no block: to say what is asked for on it, put it into the block of a document_path")
	}
	return nil
}

// unmarshalOption reads one of the handler's own options.
func (h *Handler) unmarshalOption(d *caddyfile.Dispenser, option string) (known bool, err error) {
	switch option {
	case "document_id":
		err = oneArg(d, &h.DocumentID)
	case "document_id_format":
		if err = oneArg(d, &h.DocumentIDFormat); err == nil {
			_, err = newIDFormat(h.DocumentIDFormat)
			err = wrap(d, err)
		}
	case "script_path":
		if err = oneArg(d, &h.ScriptPath); err == nil {
			_, err = compileScript(h.ScriptPath)
			err = wrap(d, err)
		}
	case "request_header":
		err = oneArg(d, &h.RequestHeader)
	case "request_cookie":
		err = oneArg(d, &h.RequestCookie)
	case "allow_store":
		h.AllowStore, err = true, noArg(d)
	case "on_error":
		err = oneArg(d, &h.OnError)
	case "api_key":
		// No error may quote this value: it may well be the key.
		h.APIKey = strings.Join(d.RemainingArgs(), " ")
		err = wrap(d, secret.Check("api_key", h.APIKey))
	case "endpoint":
		err = oneArg(d, &h.Endpoint)
	case "insecure_endpoint":
		h.InsecureEndpoint, err = true, noArg(d)
	case "timeout":
		err = durationArg(d, &h.Timeout)
	case "mint_rate":
		err = h.unmarshalMintRate(d)
	case "cache_size":
		err = h.unmarshalCacheSize(d)
	case "store":
		err = h.unmarshalStore(d)
	case "transport":
		err = h.unmarshalTransport(d)
	default:
		return false, nil
	}
	return true, err
}

// unmarshalOption reads one of the options that say what the API is asked for.
func (o *TokenOptions) unmarshalOption(d *caddyfile.Dispenser, option string) (known bool, err error) {
	switch option {
	case "permissions":
		if o.Permissions = d.RemainingArgs(); len(o.Permissions) == 0 {
			err = d.Err("permissions needs at least one name: read, write or download")
		}
	case "user_id":
		err = oneArg(d, &o.UserID)
	case "vary_by":
		if o.VaryBy = d.RemainingArgs(); len(o.VaryBy) == 0 {
			err = d.Err("vary_by needs at least one placeholder")
		}
	case "shared":
		o.Shared, err = true, noArg(d)
	case "claim":
		err = unmarshalClaim(d, &o.Claims)
	case "claim_json":
		err = unmarshalClaimJSON(d, &o.Claims)
	case "document_claim":
		err = unmarshalClaim(d, &o.DocumentClaims)
	case "document_claim_json":
		err = unmarshalClaimJSON(d, &o.DocumentClaims)
	case "ttl":
		err = durationArg(d, &o.TTL)
	case "min_remaining":
		err = durationArg(d, &o.MinRemaining)
	case "trust_request_headers":
		o.TrustRequestHeaders, err = true, noArg(d)
	default:
		return false, nil
	}
	return true, err
}

func (h *Handler) unmarshalMintRate(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	h.MintRate = new(MintRate)
	if len(args) == 1 && args[0] == "off" {
		h.MintRate.Off = true
		return nil
	}
	if len(args) != 1 && len(args) != 2 {
		return d.Err("mint_rate needs a rate per second and perhaps a burst, or off: for example mint_rate 100 1000")
	}
	var err error
	if h.MintRate.Rate, err = strconv.ParseFloat(args[0], 64); err != nil || math.IsNaN(h.MintRate.Rate) {
		return d.Errf("mint_rate %q is not a number of mints per second, nor off: write for example mint_rate 100, or mint_rate 100 1000", args[0])
	}
	if len(args) == 2 {
		if h.MintRate.Burst, err = strconv.Atoi(args[1]); err != nil || h.MintRate.Burst < 1 {
			return d.Errf("mint_rate: the burst %q is not a whole number of 1 or more", args[1])
		}
	}
	_, _, err = h.MintRate.limits()
	return wrap(d, err)
}

func (h *Handler) unmarshalCacheSize(d *caddyfile.Dispenser) error {
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	size, err := humanize.ParseBytes(text)
	if err != nil || size > math.MaxInt64 {
		return d.Errf("cache_size %q is not a size: write for example 64MiB", text)
	}
	h.CacheSize = int64(size)
	return wrap(d, checkCacheSize(h.CacheSize))
}

func (h *Handler) unmarshalTransport(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("transport needs a name: http")
	}
	if d.Val() != "http" {
		return d.Errf("transport %q: the only one is http", d.Val())
	}
	if d.CountRemainingArgs() > 0 {
		return d.Err("transport http takes no further argument: its options go into a block")
	}
	mod, err := caddyfile.UnmarshalModule(d, transportModule)
	if err != nil {
		return err
	}
	h.TransportRaw = caddyconfig.JSONModuleObject(mod.(*reverseproxy.HTTPTransport), "protocol", "http", nil)
	return nil
}

func (h *Handler) unmarshalStore(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("store needs a name, for example: store redis { ... }")
	}
	name := d.Val()
	if err := checkStoreName(name); err != nil {
		return d.WrapErr(err)
	}
	mod, err := caddyfile.UnmarshalModule(d, storeNamespace+"."+name)
	if err != nil {
		return err
	}
	h.StoreRaw = caddyconfig.JSONModuleObject(mod, "store", name, nil)
	return nil
}

// unmarshalClaim reads a name and a value, typed as Caddy types scalars.
func unmarshalClaim(d *caddyfile.Dispenser, set *map[string]json.RawMessage) error {
	option := d.Val()
	var name string
	if !d.Args(&name) || !d.NextArg() {
		return d.Errf("%s needs a name and a value", option)
	}
	text, value := d.Val(), d.ScalarVal()
	if _, err := strconv.ParseFloat(text, 64); value == any(text) && !d.Token().Quoted() && errors.Is(err, strconv.ErrRange) {
		value = math.Inf(1) // Caddy has taken it for text, since no number is that large
	}
	if f, ok := value.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
		return d.Errf("%s %s: JSON has no number %s; to send the text, write it in quotes", option, name, text)
	}
	raw, err := json.Marshal(value)
	if err != nil {
		return d.WrapErr(err)
	}
	if value != any(text) && string(raw) != text {
		return d.Errf("%s %s: %s would be sent as %s; write it like that, or in quotes to send the text (in a snippet with arguments, quotes go around {args[0]})", option, name, text, raw)
	}
	return addClaim(d, option, set, name, raw)
}

// unmarshalClaimJSON reads a name and a value in JSON.
func unmarshalClaimJSON(d *caddyfile.Dispenser, set *map[string]json.RawMessage) error {
	option := d.Val()
	var name, raw string
	if !d.Args(&name, &raw) {
		return d.Errf("%s needs a name and JSON, in backquotes if it holds spaces or quotes", option)
	}
	value, err := dws.DecodeJSON(json.RawMessage(raw))
	if err == nil {
		err = claims.CheckNumbers(value)
	}
	if err != nil {
		return d.Errf("%s %s: %v", option, name, err)
	}
	return addClaim(d, option, set, name, json.RawMessage(raw))
}

func addClaim(d *caddyfile.Dispenser, option string, set *map[string]json.RawMessage, name string, value json.RawMessage) error {
	if d.NextArg() {
		return d.Errf("%s %s: unexpected argument %q; quote values that contain spaces", option, name, d.Val())
	}
	if err := claims.Check(name, value); err != nil {
		return d.WrapErr(err)
	}
	if _, ok := (*set)[name]; ok {
		return d.Errf("%s %s is given twice", option, name)
	}
	if *set == nil {
		*set = make(map[string]json.RawMessage)
	}
	(*set)[name] = value
	return nil
}

// refuseRepeated refuses an option that is given twice, except session paths,
// and claims, which have names of their own.
func refuseRepeated(d *caddyfile.Dispenser, seen map[string]bool, option string) error {
	switch option {
	case "claim", "claim_json", "document_claim", "document_claim_json", "session_path":
		return nil
	}
	if seen[option] {
		return d.Errf("%s is given twice: remove one", option)
	}
	seen[option] = true
	return nil
}

func noArg(d *caddyfile.Dispenser) error {
	option := d.Val()
	if d.NextArg() {
		return d.Errf("%s takes no argument (%s)", option, d.Val())
	}
	return nil
}

func oneArg(d *caddyfile.Dispenser, value *string) error {
	option := d.Val()
	if !d.NextArg() || d.Val() == "" {
		return d.Errf("%s needs a value", option)
	}
	*value = d.Val()
	if d.NextArg() {
		return d.Errf("%s takes one value; unexpected argument %q", option, d.Val())
	}
	return nil
}

func durationArg(d *caddyfile.Dispenser, value *caddy.Duration) error {
	option := d.Val()
	var text string
	if err := oneArg(d, &text); err != nil {
		return err
	}
	duration, err := caddy.ParseDuration(text)
	if err != nil || duration <= 0 {
		return d.Errf("%s %q is not a duration: write a number with a unit, such as 30s, 15m, 1h or 7d", option, text)
	}
	*value = caddy.Duration(duration)
	return nil
}

// wrap adds file and line to an error, if there is one.
func wrap(d *caddyfile.Dispenser, err error) error {
	if err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Handler)(nil)
