package viewersession

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/pattern"
)

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

	// The pages bring documents of their own: they pass one to
	// `NutrientViewer.load({ session, document })`. The token names no
	// document and no permissions, the paths hold no `:id`, and the handler's
	// document_id, permissions and document_claims do not apply. Required
	// with it: user_id, vary_by or shared.
	AppProvided bool `json:"app_provided,omitempty"`

	// What the API is asked for on this route, where it differs.
	TokenOptions
}

func (r Route) hasPages() bool { return len(r.Paths) > 0 || len(r.SessionPaths) == 0 }

// route is a compiled Route, or the session paths of one.
type route struct {
	patterns   []*pattern.Pattern // none: every path
	documentID string             // template for patterns without :id
	template   *claims.Template
	session    bool // the browser fetches its token here, and the app decides
	script     bool // the handler answers with its module for the page

	appProvided bool // there is no document
}

// router finds the route of a request.
type router struct {
	routes      []*route // the script's path first, then session paths
	hasSessions bool
	idFormat    func(string) bool
}

// newRouter compiles routes and completes them with what is the same for all.
func newRouter(configs []Route, scriptPath, documentID, idFormat string, options TokenOptions) (router, error) {
	if len(configs) == 0 {
		if documentID == "" {
			return router{}, errors.New("no route: say which paths show a document with document_path, for example: document_path /documents/:id")
		}
		configs = []Route{{}}
	} else if documentID != "" && !slices.ContainsFunc(configs, Route.hasPages) {
		configs = append(slices.Clone(configs), Route{}) // document_id applies to all paths, as it does alone
	}
	fits, err := newIDFormat(idFormat)
	if err != nil {
		return router{}, err
	}
	var first, sessions, pages []*route
	if scriptPath != "" {
		script, err := compileScript(scriptPath)
		if err != nil {
			return router{}, err
		}
		first = []*route{script}
	}
	for i, config := range configs {
		session, page, err := config.compile(documentID, options)
		if err != nil {
			if paths := slices.Concat(config.Paths, config.SessionPaths); len(paths) > 0 {
				return router{}, fmt.Errorf("route %s: %w", paths[0], err)
			}
			return router{}, fmt.Errorf("route %d: %w", i+1, err)
		}
		if session != nil {
			sessions = append(sessions, session)
		}
		if page != nil {
			pages = append(pages, page)
		}
	}
	rt := router{slices.Concat(first, sessions, pages), len(sessions) > 0, fits}
	return rt, rt.check(documentID)
}

// check refuses what can never have an effect.
func (rt *router) check(documentID string) error {
	defaultIDUsed := false
	type covering struct {
		*pattern.Pattern
		session bool
	}
	var always []covering // match whatever the id is
	var withID []*pattern.Pattern
	seen := make(map[string]*route)
	for _, r := range rt.routes {
		defaultIDUsed = defaultIDUsed || r.appProvided || documentID != "" && r.documentID == documentID
		for _, p := range r.patterns {
			path := strings.ToLower(strings.TrimSuffix(p.String(), "/"))
			// Without :id the document's id decides as well, but for session paths.
			if first := seen[path]; first != nil && (p.HasID() || first.session || first.script || first.appProvided) {
				return fmt.Errorf("duplicate pattern %q: the second never matches; remove one", p)
			}
			seen[path] = r
			for _, first := range always {
				switch {
				case !first.Covers(p):
				case first.session:
					return fmt.Errorf("pattern %q never matches: session paths come first, and %q matches the same; make that one narrower", p, first)
				default:
					return fmt.Errorf("pattern %q never matches: %q comes first and matches the same; make that one narrower", p, first)
				}
			}
			for _, first := range withID {
				if id, ok := first.IDIn(p); ok && rt.idFormat(id) {
					return fmt.Errorf("pattern %q never matches: %q comes first and takes %q for an id; put the narrower one first", p, first, id)
				}
			}
			if p.HasID() {
				withID = append(withID, p)
			}
			if r.session && r.documentID == "" || r.appProvided {
				always = append(always, covering{p, r.session})
			}
		}
	}
	if documentID != "" && !defaultIDUsed {
		return fmt.Errorf("document_id %s is never used: every pattern has :id; remove one or the other", documentID)
	}
	return nil
}

// compile completes the route with the handler's settings and compiles its
// session paths and its pages, either of which may be none.
func (r Route) compile(defaultID string, defaults TokenOptions) (session, page *route, err error) {
	documentID := r.DocumentID
	if r.AppProvided {
		if err := r.checkAppProvided(); err != nil {
			return nil, nil, err
		}
		defaultID = ""
	}
	if len(r.SessionPaths) > 0 {
		if session, err = r.compileSession(defaultID); err != nil {
			return nil, nil, err
		}
		documentID = session.documentID
	}
	if r.hasPages() {
		if page, err = r.compilePages(defaultID); err != nil {
			return nil, nil, err
		}
		documentID = page.documentID
	}
	options := r.TokenOptions.over(defaults)
	if err := options.check(documentID, r.AppProvided); err != nil {
		return nil, nil, err
	}
	if r.AppProvided {
		options.Permissions, options.DocumentClaims = nil, nil
	}
	template, err := options.template(r.AppProvided)
	if err != nil {
		return nil, nil, err
	}
	for _, compiled := range []*route{session, page} {
		if compiled != nil {
			compiled.template, compiled.appProvided = template, r.AppProvided
		}
	}
	return session, page, nil
}

// checkAppProvided refuses what makes no sense where there is no document.
func (r Route) checkAppProvided() error {
	const why = "the page brings its own document"
	switch {
	case len(r.Paths) == 0 && len(r.SessionPaths) == 0:
		return errors.New("app_provided needs a path: say which pages bring their own document, for example document_path /editor")
	case r.DocumentID != "":
		return fmt.Errorf("document_id and app_provided exclude each other: %s, so there is no id; remove one", why)
	case r.Permissions != nil:
		return fmt.Errorf("permissions and app_provided exclude each other: %s, and no permissions are asked for; remove one", why)
	case r.DocumentClaims != nil:
		return fmt.Errorf("document_claim and app_provided exclude each other: %s, so the request has no entry for it; use claim instead", why)
	}
	for _, path := range slices.Concat(r.Paths, r.SessionPaths) {
		if p, err := pattern.Parse(path); err == nil && p.HasID() {
			return fmt.Errorf("pattern %q has :id, but with app_provided %s, so there is no id: write * in place of :id, or remove app_provided", path, why)
		}
	}
	return nil
}

// compilePages compiles the paths that show documents.
func (r Route) compilePages(defaultID string) (*route, error) {
	compiled := &route{documentID: r.DocumentID}
	withoutID := len(r.Paths) == 0
	for _, path := range r.Paths {
		p, err := pattern.Parse(path)
		if err != nil {
			return nil, err
		}
		if p.HasID() && r.DocumentID != "" {
			return nil, fmt.Errorf("pattern %q has :id, and the route has document_id: the id comes from one or the other", path)
		}
		if !p.HasID() && r.DocumentID == "" && defaultID == "" && !r.AppProvided {
			return nil, fmt.Errorf("pattern %q has no :id and there is no document_id: write :id in place of the document's id, for example /documents/:id, or say with document_id where it comes from, or write app_provided in its block if the page brings its own document", path)
		}
		withoutID = withoutID || !p.HasID()
		compiled.patterns = append(compiled.patterns, p)
	}
	if withoutID && compiled.documentID == "" {
		compiled.documentID = defaultID
	}
	if withoutID && compiled.documentID == "" && !r.AppProvided {
		return nil, errors.New("neither a path nor a document_id")
	}
	return compiled, nil
}

// compileSession compiles the paths at which the browser fetches a token. If they
// do not name the document, the app does.
func (r Route) compileSession(defaultID string) (*route, error) {
	compiled := &route{session: true}
	for _, path := range r.SessionPaths {
		p, err := pattern.Parse(path)
		if err != nil {
			return nil, err
		}
		if !p.HasID() {
			compiled.documentID = cmp.Or(r.DocumentID, defaultID)
		}
		compiled.patterns = append(compiled.patterns, p)
	}
	return compiled, nil
}

const defaultDocumentIDFormat = `[A-Za-z0-9_~-]{1,128}`

// matchesDefaultIDFormat is defaultDocumentIDFormat by hand: a compiled regexp
// would be the most expensive part of matching.
func matchesDefaultIDFormat(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := 0; i < len(id); i++ {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '~', c == '-':
		default:
			return false
		}
	}
	return true
}

// newIDFormat compiles document_id_format.
func newIDFormat(expr string) (func(string) bool, error) {
	if expr == "" || expr == defaultDocumentIDFormat {
		return matchesDefaultIDFormat, nil
	}
	// On its own first: with the anchors around it, "a)|(?:b" would compile.
	if _, err := regexp.Compile(expr); err != nil {
		return nil, fmt.Errorf("document_id_format: %w", err)
	}
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("document_id_format: %w", err)
	}
	return re.MatchString, nil
}

// match returns the first route that matches the path the client asked for,
// before rewrites, and the document id. If there is none, but one would match
// with another id, it returns the id that does not fit.
func (rt *router) match(r *http.Request) (found *route, id string) {
	u := r.URL
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		u = original.URL
	}
	path, ok := pattern.CanonicalPath(u)
	if !ok {
		return nil, ""
	}
	misfit := ""
	for _, candidate := range rt.routes {
		id, ok := rt.matchRoute(candidate, path, r)
		if ok {
			return candidate, id
		}
		misfit = cmp.Or(misfit, id)
	}
	return nil, misfit
}

// matchRoute also returns the id if it is what keeps the route from matching.
func (rt *router) matchRoute(candidate *route, path string, r *http.Request) (id string, ok bool) {
	matched, misfit := len(candidate.patterns) == 0, ""
	for _, p := range candidate.patterns {
		id, ok := p.Match(path)
		switch {
		case ok && p.HasID() && rt.idFormat(id):
			return id, true
		case ok && p.HasID():
			misfit = cmp.Or(misfit, id)
		case ok:
			matched = true
		}
	}
	if !matched || candidate.script || candidate.appProvided {
		return misfit, matched
	}
	id, err := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceOrErr(candidate.documentID, true, true)
	if candidate.session && (candidate.documentID == "" || err != nil) {
		return "", true // the app may know
	}
	if err != nil || !rt.fits(id) {
		return "", false
	}
	return id, true
}

// fits reports whether a document id that does not come from the path may be used.
func (rt *router) fits(id string) bool { return utf8.ValidString(id) && rt.idFormat(id) }

// skipsToken reports whether a request to a viewer route gets no token by rule:
// OPTIONS shows no document, TRACE would echo the token, and in error routes the
// handler only strips.
func skipsToken(r *http.Request) bool {
	return r.Method == http.MethodOptions || r.Method == http.MethodTrace ||
		r.Context().Value(caddyhttp.ErrorCtxKey) != nil
}
