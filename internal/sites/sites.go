// Package sites finds out, from an adapted config, which handlers a request would
// reach. Nothing is provisioned or asked.
package sites

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/rewrite"
)

// Site is what a request meets on its way.
type Site struct {
	Server string   // its name in the config
	Listen []string // its addresses
	Hosts  []string // of the routes that match; none for any

	// OtherHosts are those of routes that do not match. If there are no Hosts
	// then, no site has the request's.
	OtherHosts []string

	// Handlers are those that were looked for, as JSON, in the order in which
	// they see the request.
	Handlers []Handler

	// Answered says what answers the request in the end; empty if nothing is
	// sure to. Later are the conditions for that, beyond those of the last handler.
	Answered string
	Later    []string

	// Status is what it answers, and 0 if that is not known. MayAnswer are those
	// that would answer instead if a condition in Later did not hold.
	Status    int
	MayAnswer []Answer
}

// Answer is a response that depends on a matcher.
type Answer struct {
	Handler string
	Status  int    // 0 if it is not known
	For     string // the matcher
	Later   string // the condition in Later under which it is not given
}

// Handler is one of those that were looked for.
type Handler struct {
	Config json.RawMessage

	// Conditions are what was not looked into on the way to the handler:
	// matchers that count as met, and handlers that may answer first.
	Conditions []string

	// Before are the names of the handlers that the request has passed.
	Before []string
}

// route is the part of caddyhttp.Route that can be read without provisioning.
type route struct {
	Group    string                       `json:"group"`
	Match    []map[string]json.RawMessage `json:"match"`
	Handle   []json.RawMessage            `json:"handle"`
	Terminal bool                         `json:"terminal"`
}

type server struct {
	Listen      []string         `json:"listen"`
	Routes      []route          `json:"routes"`
	NamedRoutes map[string]route `json:"named_routes"`
}

// NewRequest returns the request for an address, as handlers see it.
func NewRequest(method, address string) (*http.Request, error) {
	u, err := url.Parse(address)
	if err == nil {
		if ascii, idnaErr := idna.Lookup.ToASCII(u.Hostname()); idnaErr == nil && ascii != "" {
			u.Host = strings.Replace(u.Host, u.Hostname(), ascii, 1)
		}
	}
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%q is not an address: write one as browsers show it, such as https://docs.example.com/documents/42", address)
	}
	r, err := http.NewRequest(method, "/", nil) //nolint:noctx // it is never sent
	if err != nil {
		return nil, err
	}
	// As servers read a request line: two slashes are no host there.
	if r.URL, err = url.ParseRequestURI(u.RequestURI()); err != nil {
		return nil, err
	}
	r.RequestURI, r.Host = u.RequestURI(), u.Host
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), nil, nil)
	caddyhttp.SetVar(r.Context(), schemeVar, u.Scheme)
	return r, nil
}

const schemeVar = "sites.scheme"

// Find follows a request made by NewRequest through the config, and returns nil
// if no server listens for it.
func Find(config []byte, r *http.Request, handler string) (*Site, error) {
	var parsed struct {
		Apps struct {
			HTTP struct {
				Servers map[string]server `json:"servers"`
			} `json:"http"`
		} `json:"apps"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, fmt.Errorf("the config is not what Caddy reads: %w", err)
	}
	servers := parsed.Apps.HTTP.Servers
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		if s := servers[name]; s.listensFor(r) {
			w := &walk{site: &Site{Server: name, Listen: s.Listen}, named: s.NamedRoutes, r: r, handler: handler}
			if _, err := w.follow(s.Routes, make(map[string]bool)); err != nil {
				return nil, err
			}
			w.site.Later = slices.Clone(w.conditions[min(w.seen, len(w.conditions)):])
			return w.site, nil
		}
	}
	return nil, nil
}

// listensFor reports whether a listener has the request's port.
func (s *server) listensFor(r *http.Request) bool {
	port := map[any]int{"http": 80, "https": 443}[caddyhttp.GetVar(r.Context(), schemeVar)]
	u := url.URL{Host: r.Host}
	if text := u.Port(); text != "" {
		port, _ = strconv.Atoi(text)
	}
	for _, listen := range s.Listen {
		address, err := caddy.ParseNetworkAddress(listen)
		if err == nil && uint(port) >= address.StartPort && uint(port) <= address.EndPort { //nolint:gosec // a port
			return true
		}
	}
	return len(s.Listen) == 0
}

// walk follows one request.
type walk struct {
	site       *Site
	named      map[string]route
	r          *http.Request
	handler    string
	conditions []string
	seen       int // conditions of the last handler that was found
	before     []string
	depth      int
}

// follow reports whether something is sure to answer.
func (w *walk) follow(routes []route, groups map[string]bool) (answered bool, err error) {
	if w.depth++; w.depth > 50 {
		return false, errors.New("routes are nested too deep")
	}
	defer func() { w.depth-- }()
	for _, rt := range routes {
		if groups[rt.Group] {
			continue
		}
		met, unknown, err := w.match(rt.Match)
		if err != nil {
			return false, err
		}
		if !met {
			continue
		}
		sure := len(unknown) == 0
		if rt.Group != "" && sure {
			groups[rt.Group] = true
		}
		before := len(w.conditions)
		w.conditions = append(w.conditions, unknown...)
		answered, err := w.handle(rt.Handle)
		if err != nil {
			return false, err
		}
		if !sure {
			// Whether the route is taken is not known: what it would answer
			// is a condition for what follows.
			within := slices.Clone(w.conditions[before+len(unknown):])
			w.conditions = w.conditions[:before]
			for _, condition := range within {
				w.conditions = append(w.conditions, condition+" (for "+strings.Join(unknown, ", ")+")")
			}
			if answered {
				a := Answer{Handler: w.site.Answered, Status: w.site.Status, For: strings.Join(unknown, ", ")}
				a.Later = directive(a.Handler) + " does not answer, as it would for " + a.For
				w.conditions = append(w.conditions, a.Later)
				w.site.MayAnswer = append(w.site.MayAnswer, a)
				w.site.Answered, w.site.Status = "", 0
			}
			continue
		}
		if rt.Terminal && !answered && w.depth > 1 {
			w.site.Answered, w.site.Status, answered = "an empty answer", 0, true // nothing runs after a terminal route
		}
		if answered || rt.Terminal {
			return answered, nil
		}
	}
	return false, nil
}

// passing are handlers that always go on to the next, and mayAnswer those that
// may answer instead, with when they do.
var (
	passing   = []string{"headers", "encode", "vars", "map", "tracing", "log_append", "request_body", "templates", "intercept", "push"}
	mayAnswer = map[string]string{"authentication": "authentication lets the request through"}
)

func (w *walk) handle(handlers []json.RawMessage) (answered bool, err error) {
	for _, raw := range handlers {
		var h struct {
			Name           string            `json:"handler"`
			Routes         []route           `json:"routes"`
			Route          string            `json:"name"`
			StatusCode     json.RawMessage   `json:"status_code"`
			HandleResponse []json.RawMessage `json:"handle_response"`
			PassThru       bool              `json:"pass_thru"`
		}
		if err := json.Unmarshal(raw, &h); err != nil {
			// Options of others may have these names.
			if err := json.Unmarshal(raw, &struct {
				Name *string `json:"handler"`
			}{&h.Name}); err != nil {
				return false, fmt.Errorf("a handler in the config is not what Caddy reads: %w", err)
			}
		}
		switch {
		case h.Name == w.handler:
			w.site.Handlers = append(w.site.Handlers, Handler{raw, slices.Clone(w.conditions), slices.Clone(w.before)})
			w.seen = len(w.conditions)
		case h.Name == "subroute":
			answered, err = w.follow(h.Routes, make(map[string]bool))
		case h.Name == "invoke":
			answered, err = w.follow([]route{w.named[h.Route]}, make(map[string]bool))
		case h.Name == "rewrite":
			w.rewrite(raw)
		case slices.Contains(passing, h.Name):
		case h.Name == "reverse_proxy" && len(h.HandleResponse) > 0:
			w.conditions = append(w.conditions, "reverse_proxy (as in forward_auth) lets the request through")
		case h.Name == "file_server" && h.PassThru:
			w.conditions = append(w.conditions, "file_server has no such file")
		case slices.Contains([]string{"reverse_proxy", "static_response", "file_server", "error"}, h.Name):
			w.site.Answered, answered = h.Name, true
			w.site.Status = statusOf(h.Name, h.StatusCode)
		default:
			w.conditions = append(w.conditions, cmp.Or(mayAnswer[h.Name], directive(h.Name)+" does not answer first"))
		}
		if answered || err != nil {
			return answered, err
		}
		w.before = append(w.before, h.Name)
	}
	return false, nil
}

// statusOf returns the status with which a handler always answers, or 0 if that is
// not known.
func statusOf(handler string, raw json.RawMessage) int {
	status, ok := map[string]int{"static_response": http.StatusOK, "error": http.StatusInternalServerError}[handler]
	if !ok || len(raw) == 0 {
		return status
	}
	status, _ = strconv.Atoi(strings.Trim(string(raw), `"`)) // a number, as text or not, or a placeholder
	return status
}

// directive is how a handler is called in Caddyfiles.
func directive(handler string) string {
	return cmp.Or(map[string]string{"static_response": "respond (or redir, abort)", "authentication": "basic_auth"}[handler], handler)
}

// short is the beginning of a matcher's config, or of its regular expression.
func short(raw json.RawMessage) string {
	const most = 35
	var re struct {
		Pattern string `json:"pattern"`
	}
	text := string(raw)
	if json.Unmarshal(raw, &re) == nil && re.Pattern != "" {
		text = re.Pattern
	}
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// rewrite changes the path that later matchers see.
func (w *walk) rewrite(raw json.RawMessage) {
	var config rewrite.Rewrite
	if json.Unmarshal(raw, &config) == nil && len(config.PathRegexp) == 0 && config.Query == nil {
		config.Rewrite(w.r, w.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer))
	}
}

// match reports whether one of the sets of matchers may be met, and which
// matchers that hangs on.
func (w *walk) match(sets []map[string]json.RawMessage) (met bool, unknown []string, err error) {
	if len(sets) == 0 {
		return true, nil, nil
	}
	var maybe []string
	for _, set := range sets {
		met, unknown, err := w.matchSet(set)
		if err != nil {
			return false, nil, err
		}
		if met && len(unknown) == 0 {
			return true, nil, nil
		}
		if met {
			maybe = append(maybe, strings.Join(unknown, " and "))
		}
	}
	if len(maybe) == 0 {
		return false, nil, nil
	}
	return true, []string{strings.Join(maybe, ", or ")}, nil
}

func (w *walk) matchSet(set map[string]json.RawMessage) (met bool, unknown []string, err error) {
	for _, name := range slices.Sorted(maps.Keys(set)) {
		raw := set[name]
		var matched bool
		switch name {
		case "host":
			var hosts caddyhttp.MatchHost
			if err = json.Unmarshal(raw, &hosts); err == nil {
				if err = hosts.Provision(caddy.Context{}); err == nil {
					matched, err = hosts.MatchWithError(w.r)
				}
			}
			if matched && len(w.site.Hosts) == 0 {
				w.site.Hosts = hosts
			} else if !matched {
				w.site.OtherHosts = append(w.site.OtherHosts, hosts...)
			}
		case "path":
			var paths caddyhttp.MatchPath
			if err = json.Unmarshal(raw, &paths); err == nil {
				if err = paths.Provision(caddy.Context{}); err == nil {
					matched, err = paths.MatchWithError(w.r)
				}
			}
		case "method":
			var methods caddyhttp.MatchMethod
			if err = json.Unmarshal(raw, &methods); err == nil {
				if err = methods.Provision(caddy.Context{}); err == nil {
					matched, err = methods.MatchWithError(w.r)
				}
			}
		case "not":
			var sets []map[string]json.RawMessage
			if err = json.Unmarshal(raw, &sets); err == nil {
				inner, hangsOn, innerErr := w.match(sets)
				matched, err = !inner || len(hangsOn) > 0, innerErr
				if inner && len(hangsOn) > 0 {
					unknown = append(unknown, "not "+hangsOn[0])
				}
			}
		default:
			matched, unknown = true, append(unknown, "the matcher "+name+" "+short(raw))
		}
		if err != nil {
			return false, nil, fmt.Errorf("the matcher %s: %w", name, err)
		}
		if !matched {
			return false, nil, nil
		}
	}
	return true, unknown, nil
}
