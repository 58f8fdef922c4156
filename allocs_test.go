package viewersession

import (
	"net/http"
	"strings"
	"testing"
)

// What a request may allocate, which does not depend on the machine: the request info
// with all that hangs on it, and the function that provides the placeholders.
// More is only for what was asked for: a cookie's text, or a user's claims.
func TestAllocationBudget(t *testing.T) {
	for name, test := range map[string]struct {
		path, options string
		budget        float64
	}{
		"no viewer route": {"/assets/app.js", "", 0},
		"header":          {"/documents/doc", "", 2},

		// The app's headers are watched where there are session paths.
		"no viewer route, session paths": {"/assets/app.js", "session_path /documents/:id/session", 1},
		"header, session paths":          {"/documents/doc", "session_path /documents/:id/session", 2},

		"allow_store": {"/documents/doc", "allow_store", 2},
		"cookie":      {"/documents/doc", "request_cookie viewer_session", 8},
		"user":        {"/documents/doc", "user_id {http.auth.user.id}\nclaim team {http.auth.user.id}", 9},
	} {
		t.Run(name, func(t *testing.T) {
			directive := strings.NewReplacer("1500MiB", "1MiB", "}", test.options+"\n}").Replace(plainDirective)
			h := instantHandler(t, directive)
			p := prepare(test.path, "ann")
			serve := func() {
				if err := h.ServeHTTP(p.w, p.r, nothing); err != nil {
					t.Fatal(err)
				}
				if got := p.r.Header[http.CanonicalHeaderKey(defaultRequestHeader)]; got != nil {
					t.Fatal("the token stays on the request")
				}
				p.again()
			}
			serve() // mints
			budget := test.budget
			if raceDetector {
				budget += 2 // it makes ristretto's pools forget
			}
			if got := testing.AllocsPerRun(1000, serve); got > budget {
				t.Errorf("%v allocations, want at most %v", got, budget)
			}
		})
	}
}
