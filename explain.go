package viewersession

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/dws"
	"github.com/viewersession/caddy-viewer-session/internal/pattern"
	"github.com/viewersession/caddy-viewer-session/internal/sites"
)

// explanation says what a config does with a request.
type explanation struct {
	URL      string               `json:"url"`
	Method   string               `json:"method"`
	Token    bool                 `json:"token"` // if the conditions hold
	Why      string               `json:"why,omitempty"`
	Server   string               `json:"server,omitempty"`
	Listen   []string             `json:"listen,omitempty"`
	Hosts    []string             `json:"hosts,omitempty"`
	Answered string               `json:"answered_by,omitempty"` // what answers in the end, as far as that is sure
	Later    []string             `json:"later,omitempty"`       // conditions for that
	Handlers []handlerExplanation `json:"handlers"`
}

// handlerExplanation says what one viewer_session does.
type handlerExplanation struct {
	Conditions []string           `json:"conditions,omitempty"`
	Routes     []routeExplanation `json:"routes"`
	Why        string             `json:"why,omitempty"`     // why there is no token
	Answers    bool               `json:"answers,omitempty"` // with the module for the page, if the conditions hold
	Token      *tokenExplanation  `json:"token,omitempty"`
}

type routeExplanation struct {
	Path    string `json:"path"`
	Session bool   `json:"session_path,omitempty"`
	Script  bool   `json:"script_path,omitempty"`
	Match   bool   `json:"match"`
	Why     string `json:"why,omitempty"`
}

type tokenExplanation struct {
	DocumentID   string            `json:"document_id,omitempty"`
	AppProvided  bool              `json:"app_provided,omitempty"` // there is no document
	Permissions  []string          `json:"permissions,omitempty"`
	UserID       string            `json:"user_id,omitempty"`
	VaryBy       []string          `json:"vary_by,omitempty"`
	Placeholders map[string]string `json:"placeholders,omitempty"` // and where they are said to come from
	TTL          string            `json:"ttl"`
	MinRemaining string            `json:"min_remaining"`
	RenewedAfter string            `json:"renewed_after"`
	Header       string            `json:"request_header,omitempty"`
	Cookie       string            `json:"request_cookie,omitempty"`
	Browser      bool              `json:"browser,omitempty"` // on a session path
	Endpoint     string            `json:"endpoint"`
	APIKey       string            `json:"api_key"` // the placeholder
	Request      json.RawMessage   `json:"request"`
}

// explain says what an adapted config does with a request. Nothing is
// provisioned, asked or needed for it.
func explain(config []byte, method, address string, now time.Time) (*explanation, error) {
	r, err := sites.NewRequest(method, address)
	if err != nil {
		return nil, err
	}
	e := &explanation{URL: address, Method: method, Handlers: []handlerExplanation{}}
	site, err := sites.Find(config, r, "viewer_session")
	if err != nil {
		return nil, err
	}
	if site == nil {
		e.Why = "no server listens on this port"
		if u := (url.URL{Host: r.Host}); strings.HasPrefix(address, "http:") && u.Port() == "" {
			e.Why += "; Caddy redirects HTTP to HTTPS by itself, so try https"
		}
		return e, nil
	}
	e.Server, e.Listen, e.Hosts, e.Answered, e.Later = site.Server, site.Listen, site.Hosts, site.Answered, site.Later
	for _, found := range site.Handlers {
		explained, err := explainHandler(found.Config, found.Before, r, now)
		if err != nil {
			return nil, fmt.Errorf("viewer_session: %w", err)
		}
		if explained.Token != nil && explained.Token.Browser {
			explained.approve(site)
			e.Later = site.Later
		}
		explained.Conditions = append(found.Conditions, explained.Conditions...)
		e.Handlers = append(e.Handlers, *explained)
		e.Token = e.Token || explained.Token != nil
		e.Why = cmp.Or(e.Why, explained.Why)
		if explained.Answers {
			e.Answered, e.Later = "viewer_session", nil
			break // the others do not see it
		}
	}
	switch {
	case e.Token:
		e.Why = ""
	case len(site.Handlers) == 0 && len(site.Hosts) == 0 && len(site.OtherHosts) > 0:
		e.Why = "no site on this port has the host " + r.Host
		if strings.HasPrefix(address, "http:") {
			e.Why += " (Caddy redirects HTTP to HTTPS by itself: try https)"
		}
	case len(site.Handlers) == 0 && site.Answered != "":
		e.Why = site.Answered + " answers, and no viewer_session before it sees the request"
	case len(site.Handlers) == 0:
		e.Why = "no viewer_session sees the request: there is none in this site, or it is in a handle block for other paths"
	}
	return e, nil
}

func explainHandler(config json.RawMessage, before []string, r *http.Request, now time.Time) (*handlerExplanation, error) {
	raw, err := withoutMember(config, "handler")
	if err != nil {
		return nil, err
	}
	h := new(Handler)
	if err := caddy.StrictUnmarshalJSON(raw, h); err != nil {
		return nil, err
	}
	if err := h.compile(); err != nil {
		return nil, err
	}
	endpoint, err := h.parseEndpoint()
	if err != nil {
		return nil, err
	}
	x := &explainer{r: r, from: make(map[string]string)}
	e, route, id := x.routes(&h.router)
	if route == nil {
		return e, nil
	}
	var c claims.Claims
	route.template.Resolve(&c, x.replacer(), id)
	switch missing := neverSet(c.UserID, before); {
	case missing != "" && route.session:
		e.Conditions = append(e.Conditions, "the app names the user in X-Viewer-User, since "+missing)
	case missing != "":
		e.Why = "user_id is never set: " + missing
		return e, nil
	}
	if route.session {
		replaces := "X-Viewer-Permissions and X-Viewer-User in it replace"
		if route.appProvided {
			replaces = "X-Viewer-User in it replaces"
		}
		e.Conditions = append(e.Conditions, "the app answers 204 (and "+replaces+" what is said above)")
	}
	for _, name := range slices.Sorted(maps.Keys(x.from)) {
		varies := slices.ContainsFunc(c.VaryBy, func(template string) bool { return strings.Contains(template, "{"+name+"}") })
		if (!varies || route.template.NeedsVaryBy(&c)) && name != documentHeader {
			e.Conditions = append(e.Conditions, "{"+name+"} is not empty")
		}
	}
	if strings.Contains(id, "{") {
		e.Conditions = append(e.Conditions, id+" fits document_id_format")
	}
	body := c.Body(now.Add(c.TTL).Unix(), dws.BothNames)
	e.Token = &tokenExplanation{
		DocumentID: id, AppProvided: route.appProvided, Permissions: c.Permissions, UserID: c.UserID, Placeholders: x.from,
		TTL: shortDuration(c.TTL), MinRemaining: shortDuration(c.MinRemaining), RenewedAfter: shortDuration((c.TTL - c.MinRemaining) / 2),
		Browser: route.session, Endpoint: endpoint.String(), APIKey: cmp.Or(h.APIKey, defaultAPIKey), Request: body,
	}
	for i := 1; i < len(c.VaryBy); i += 2 {
		e.Token.VaryBy = append(e.Token.VaryBy, c.VaryBy[i])
	}
	if !route.session {
		e.Token.Header, e.Token.Cookie = h.names.Header, h.names.Cookie
	}
	return e, nil
}

// approve looks for the 204 that a session path needs, where the site itself
// answers instead of an app.
func (e *handlerExplanation) approve(site *sites.Site) {
	if site.Status == 0 || site.Status == http.StatusNoContent {
		return
	}
	var approving []string
	for _, answer := range site.MayAnswer {
		if answer.Status == 0 || answer.Status == http.StatusNoContent {
			approving = append(approving, answer.For)
			site.Later = slices.DeleteFunc(site.Later, func(condition string) bool { return condition == answer.Later })
		}
	}
	if len(approving) == 0 {
		e.Why, e.Token = fmt.Sprintf("%s answers %d, and only a 204 approves a session", site.Answered, site.Status), nil
		e.Conditions = nil
		return
	}
	e.Conditions = append(e.Conditions, "it is answered with 204, as for "+strings.Join(approving, " or "))
}

// shortDuration leaves out units that are zero.
func shortDuration(d time.Duration) string {
	text := strings.TrimSuffix(d.String(), "m0s")
	if text != d.String() {
		text += "m"
	}
	return strings.TrimSuffix(text, "h0m") + map[bool]string{true: "h"}[strings.HasSuffix(text, "h0m")]
}

// neverSet says why a user's placeholder cannot be set, if nothing that the
// request has passed sets it.
func neverSet(user string, before []string) string {
	switch {
	case slices.ContainsFunc(before, func(name string) bool { return !slices.Contains(coreHandlers, name) }):
		return "" // a plugin may set it
	case strings.Contains(user, "{http.auth.") && !slices.Contains(before, "authentication"):
		return "no authentication (such as basic_auth) sees this request before viewer_session"
	case strings.Contains(user, "{http.reverse_proxy.header.") && !slices.Contains(before, "reverse_proxy"):
		return "no forward_auth sees this request before viewer_session"
	default:
		return ""
	}
}

// coreHandlers are those of Caddy that set no user but as neverSet says.
var coreHandlers = []string{
	"headers", "encode", "vars", "map", "tracing", "log_append", "request_body", "templates", "intercept", "push", "rewrite", "subroute",
	"invoke", "authentication", "reverse_proxy", "static_response", "file_server", "error", "metrics", "acme_server", "viewer_session",
}

// explainer explains one request, and notes the placeholders that it leaves as
// they are.
type explainer struct {
	r    *http.Request
	from map[string]string
}

// replacer knows what the URL says, and leaves everything else as it is.
func (x *explainer) replacer() *caddy.Replacer {
	known := x.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl := caddy.NewEmptyReplacer()
	repl.Map(func(name string) (any, bool) {
		for _, prefix := range []string{"http.request.uri", "http.request.orig_uri", "http.request.host", "http.request.method", "http.request.scheme"} {
			if strings.HasPrefix(name, prefix) {
				if value, ok := known.Get(name); ok {
					return value, true
				}
			}
		}
		x.from[name] = sourceOf(name)
		return "{" + name + "}", true
	})
	return repl
}

// routes says of each route whether it matches, and returns the one that wins.
func (x *explainer) routes(rt *router) (e *handlerExplanation, won *route, id string) {
	e = &handlerExplanation{Routes: []routeExplanation{}}
	original, _ := x.r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	path, canonical := pattern.CanonicalPath(original.URL)
	switch {
	case !canonical:
		e.Why = "the path is not canonical: two servers could read it differently (//, /../, \\, %2F, %25 and the like)"
	case skipsToken(x.r):
		e.Why = x.r.Method + " gets no token"
	}
	for _, candidate := range rt.routes {
		for _, row := range x.patterns(rt, candidate, path) {
			switch {
			case !canonical:
				row.Match, row.Why = false, "the path is not canonical"
			case row.Match && won != nil:
				row.Match, row.Why = false, "an earlier route wins"
			case row.Match && e.Why != "":
				row.Match, row.Why = false, e.Why
			case row.Match:
				won, id = candidate, row.id
			}
			e.Routes = append(e.Routes, row.routeExplanation)
		}
	}
	if won != nil && won.session && x.r.Method != http.MethodGet && x.r.Method != http.MethodHead {
		e.Why, won = "a session path answers GET and HEAD; "+x.r.Method+" goes to the app", nil
	}
	if won != nil && won.script {
		if e.Answers = servesScript(x.r); e.Answers {
			e.Why = "viewer_session answers itself, with the module for the page"
		} else {
			e.Why = "script_path answers GET and HEAD; " + x.r.Method + " goes to the app"
		}
		won = nil
	}
	if won == nil {
		e.Why = cmp.Or(e.Why, "no route matches")
	}
	return e, won, id
}

type explainedPattern struct {
	routeExplanation
	id string
}

// patterns says of each pattern of a route whether it matches.
func (x *explainer) patterns(rt *router, candidate *route, path string) (rows []explainedPattern) {
	fromTemplate := func(row *explainedPattern) {
		row.id = x.replacer().ReplaceAll(candidate.documentID, "")
		switch {
		case candidate.session && candidate.documentID == "":
			row.Match, row.id = true, "{X-Viewer-Document}"
			x.from["X-Viewer-Document"] = "the response header of the app's 204"
		case row.id == "" && !candidate.session:
			row.Why = "document_id " + candidate.documentID + " is empty"
		case strings.Contains(row.id, "{") || rt.fits(row.id):
			row.Match = true
		default:
			row.Why = fmt.Sprintf("the id %q does not fit document_id_format", row.id)
		}
	}
	if len(candidate.patterns) == 0 {
		row := explainedPattern{routeExplanation: routeExplanation{Path: "(every path)"}}
		fromTemplate(&row)
		return []explainedPattern{row}
	}
	for _, p := range candidate.patterns {
		row := explainedPattern{routeExplanation: routeExplanation{Path: p.String(), Session: candidate.session, Script: candidate.script, Why: p.Why(path)}}
		if row.Why == "" {
			var ok bool
			switch row.id, ok = p.Match(path); {
			case candidate.script, candidate.appProvided:
				row.Match = ok
			case p.HasID() && rt.idFormat(row.id):
				row.Match = ok
			case p.HasID():
				row.Why = fmt.Sprintf("the id %q does not fit document_id_format", row.id)
			default:
				fromTemplate(&row)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// sourceOf says where a placeholder is said to come from.
func sourceOf(placeholder string) string {
	for _, source := range []struct{ prefix, text string }{
		{"http.auth.", "authentication in Caddy, such as basic_auth"},
		{"http.reverse_proxy.header.", "a header of the auth server's answer (forward_auth)"},
		{"http.vars.", "a variable (vars, map or another handler)"},
		{"http.regexp.", "a regular expression in a matcher"},
		{"http.request.header.", "a header of the request"},
		{"http.request.cookie.", "a cookie of the request"},
		{"http.request.body", "the request's body"},
		{"http.request.tls.", "the client's TLS connection"},
		{"env.", "the environment"},
		{"file.", "a file"},
	} {
		if strings.HasPrefix(placeholder, source.prefix) {
			return source.text
		}
	}
	return "another handler"
}

// text is the explanation for a terminal.
func (e *explanation) text() string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s"+format+"\n", append([]any{label}, args...)...)
	}
	line("request", "%s %s", e.Method, e.URL)
	if e.Server != "" {
		hosts := "any host"
		if len(e.Hosts) > 0 {
			hosts = strings.Join(e.Hosts, ", ")
		}
		line("site", "%s (server %s, %s)", hosts, e.Server, strings.Join(e.Listen, " "))
	}
	for i, h := range e.Handlers {
		if len(e.Handlers) > 1 {
			b.WriteByte('\n')
			line("handler", "viewer_session %d of %d", i+1, len(e.Handlers))
		}
		width := 0
		for _, route := range h.Routes {
			width = max(width, len(route.Path))
		}
		for j, route := range h.Routes {
			label := ""
			if j == 0 {
				label = "routes"
			}
			verdict := "no: " + route.Why
			if route.Match {
				verdict = "yes"
			}
			line(label, "%-*s  %s", width, route.Path, verdict)
		}
		if t := h.Token; t != nil {
			t.write(line)
		}
		for j, condition := range h.Conditions {
			label := ""
			if j == 0 {
				label = "if"
			}
			line(label, "%s", condition)
		}
	}
	if e.Answered != "" && e.Answered != "reverse_proxy" && len(e.Handlers) > 0 {
		line("then", "%s answers", e.Answered)
	}
	for j, condition := range e.Later {
		label := ""
		if j == 0 && len(e.Handlers) > 0 {
			label = "later"
		}
		line(label, "%s", condition)
	}
	if e.Token {
		conditions := ""
		if slices.ContainsFunc(e.Handlers, func(h handlerExplanation) bool { return h.Token != nil && len(h.Conditions) > 0 }) {
			conditions = ", if the conditions hold"
		}
		line("token", "yes%s", conditions)
	} else {
		line("token", "none: %s", e.Why)
	}
	return b.String()
}

func (t *tokenExplanation) write(line func(label, format string, args ...any)) {
	if t.AppProvided {
		line("document", "the page's own")
	} else {
		line("document", "%s", t.DocumentID)
		line("permissions", "%s", strings.Join(t.Permissions, " "))
	}
	if t.UserID != "" {
		line("user", "%s", t.UserID)
	}
	if len(t.VaryBy) > 0 {
		line("varies by", "%s", strings.Join(t.VaryBy, " "))
	}
	names := make([]string, 0, len(t.Placeholders))
	for name := range t.Placeholders {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line("", "{%s} comes from %s", name, t.Placeholders[name])
	}
	line("lives", "%s, renewed in the background after about %s", t.TTL, t.RenewedAfter)
	line("", "good for %s at least when it is handed out, as long as one can be minted", t.MinRemaining)
	var to []string
	if t.Browser {
		to = append(to, "the browser, as JSON, if the app answers 204")
	}
	if t.Header != "" {
		to = append(to, "the request header "+t.Header)
	}
	if t.Cookie != "" {
		to = append(to, "the cookie "+t.Cookie)
	}
	line("goes to", "%s", strings.Join(to, " and "))
	line("asks", "POST %s", t.Endpoint)
	line("", "with the key in %s", t.APIKey)
	var body bytes.Buffer
	_ = json.Indent(&body, t.Request, strings.Repeat(" ", 12), "  ") // it was made here
	line("", "%s", listOfTexts.ReplaceAllStringFunc(body.String(), func(list string) string {
		return "[" + strings.Join(strings.Fields(strings.Trim(list, "[]")), " ") + "]"
	}))
}

// listOfTexts is a JSON array of strings without spaces, however it is indented.
var listOfTexts = regexp.MustCompile(`\[\s*"[^"\s]*"(?:,\s*"[^"\s]*")*\s*\]`)
