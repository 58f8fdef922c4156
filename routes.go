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

// route is a compiled Route, or the session paths of one.
type route struct {
	patterns   []*pattern.Pattern // none: every path
	documentID string             // template for patterns without :id
	template   *claims.Template
	session    bool // the browser fetches its token here, and the app decides
}

// compileRoutes completes the routes with the handler's settings.
func (h *Handler) compileRoutes() error {
	routes := h.Routes
	if len(routes) == 0 {
		if h.DocumentID == "" {
			return errors.New("no route: say which paths show a document with document_path, for example: document_path /documents/:id")
		}
		routes = []Route{{}}
	} else if h.DocumentID != "" && !slices.ContainsFunc(routes, Route.hasPages) {
		routes = append(slices.Clone(routes), Route{}) // document_id applies to all paths, as it does alone
	}
	var sessions, pages []*route
	for i, config := range routes {
		session, page, err := h.newRoute(config)
		if err != nil {
			if paths := slices.Concat(config.Paths, config.SessionPaths); len(paths) > 0 {
				return fmt.Errorf("route %s: %w", paths[0], err)
			}
			return fmt.Errorf("route %d: %w", i+1, err)
		}
		if session != nil {
			sessions = append(sessions, session)
		}
		if page != nil {
			pages = append(pages, page)
		}
	}
	h.routes = slices.Concat(sessions, pages)
	return h.checkRoutes()
}

func (r Route) hasPages() bool { return len(r.Paths) > 0 || len(r.SessionPaths) == 0 }

// checkRoutes refuses what can never have an effect.
func (h *Handler) checkRoutes() error {
	defaultIDUsed := false
	var sessions []*pattern.Pattern // that match whatever the id is
	seen := make(map[string]*route)
	for _, r := range h.routes {
		defaultIDUsed = defaultIDUsed || h.DocumentID != "" && r.documentID == h.DocumentID
		for _, p := range r.patterns {
			path := strings.ToLower(strings.TrimSuffix(p.String(), "/"))
			// Without :id the document's id decides as well, but for session paths.
			if first := seen[path]; first != nil && (p.HasID() || first.session) {
				return fmt.Errorf("duplicate pattern %q: the second never matches; remove one", p)
			}
			seen[path] = r
			for _, first := range sessions {
				if first.Covers(p) {
					return fmt.Errorf("pattern %q never matches: session paths come first, and %q matches the same; make that one narrower", p, first)
				}
			}
			if r.session && r.documentID == "" {
				sessions = append(sessions, p)
			}
		}
	}
	if h.DocumentID != "" && !defaultIDUsed {
		return fmt.Errorf("document_id %s is never used: every pattern has :id; remove one or the other", h.DocumentID)
	}
	return nil
}

// newRoute completes a route with the handler's settings and compiles its
// session paths and its pages, either of which may be none.
func (h *Handler) newRoute(config Route) (session, page *route, err error) {
	documentID := config.DocumentID
	if len(config.SessionPaths) > 0 {
		if session, err = h.newSession(config); err != nil {
			return nil, nil, err
		}
		documentID = session.documentID
	}
	if config.hasPages() {
		if page, err = h.newPage(config); err != nil {
			return nil, nil, err
		}
		documentID = page.documentID
	}
	options := config.TokenOptions.over(h.TokenOptions)
	if err := options.check(documentID); err != nil {
		return nil, nil, err
	}
	template, err := options.template()
	if err != nil {
		return nil, nil, err
	}
	for _, r := range []*route{session, page} {
		if r != nil {
			r.template = template
		}
	}
	return session, page, nil
}

// newPage compiles the paths that show documents.
func (h *Handler) newPage(config Route) (*route, error) {
	r := &route{documentID: config.DocumentID}
	withoutID := len(config.Paths) == 0
	for _, path := range config.Paths {
		p, err := pattern.Parse(path)
		if err != nil {
			return nil, err
		}
		if p.HasID() && config.DocumentID != "" {
			return nil, fmt.Errorf("pattern %q has :id, and the route has document_id: the id comes from one or the other", path)
		}
		if !p.HasID() && config.DocumentID == "" && h.DocumentID == "" {
			return nil, fmt.Errorf("pattern %q has no :id and there is no document_id: write :id in place of the document's id, for example /documents/:id, or say with document_id where it comes from", path)
		}
		withoutID = withoutID || !p.HasID()
		r.patterns = append(r.patterns, p)
	}
	if withoutID && r.documentID == "" {
		r.documentID = h.DocumentID
	}
	if withoutID && r.documentID == "" {
		return nil, errors.New("neither a path nor a document_id")
	}
	return r, nil
}

// newSession compiles the paths at which the browser fetches a token. If they
// do not name the document, the app does.
func (h *Handler) newSession(config Route) (*route, error) {
	r := &route{session: true}
	for _, path := range config.SessionPaths {
		p, err := pattern.Parse(path)
		if err != nil {
			return nil, err
		}
		if !p.HasID() {
			r.documentID = cmp.Or(config.DocumentID, h.DocumentID)
		}
		r.patterns = append(r.patterns, p)
	}
	return r, nil
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
// before rewrites, and the document id.
func (h *Handler) match(r *http.Request) (*route, string) {
	u := r.URL
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		u = original.URL
	}
	path, ok := pattern.CanonicalPath(u)
	if !ok {
		return nil, ""
	}
	for _, route := range h.routes {
		if id, ok := h.matchRoute(route, path, r); ok {
			return route, id
		}
	}
	return nil, ""
}

func (h *Handler) matchRoute(rt *route, path string, r *http.Request) (id string, ok bool) {
	matched := len(rt.patterns) == 0
	for _, p := range rt.patterns {
		id, ok := p.Match(path)
		if ok && p.HasID() && h.idFormat(id) {
			return id, true
		}
		matched = matched || ok && !p.HasID()
	}
	if !matched {
		return "", false
	}
	id, err := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).ReplaceOrErr(rt.documentID, true, true)
	if rt.session && (rt.documentID == "" || err != nil) {
		return "", true // the app may know
	}
	return id, err == nil && h.fits(id)
}

// fits reports whether a document id that does not come from the path may be used.
func (h *Handler) fits(id string) bool { return utf8.ValidString(id) && h.idFormat(id) }

// skipsToken reports whether a request to a viewer route gets no token by rule:
// OPTIONS shows no document, TRACE would echo the token, and in error routes the
// handler only strips.
func skipsToken(r *http.Request) bool {
	return r.Method == http.MethodOptions || r.Method == http.MethodTrace ||
		r.Context().Value(caddyhttp.ErrorCtxKey) != nil
}
