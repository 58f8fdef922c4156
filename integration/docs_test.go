package integration

import (
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/caddyserver/caddy/v2"
)

// docs are all pages, by their path from the root of the repository.
func docs(t *testing.T) map[string]string {
	t.Helper()
	pages := make(map[string]string)
	for _, glob := range []string{"*.md", "docs/*.md", "examples/*.md"} {
		names, err := filepath.Glob("../" + glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			pages[filepath.ToSlash(strings.TrimPrefix(name, ".."+string(filepath.Separator)))] = string(text)
		}
	}
	if len(pages) < 12 {
		t.Fatalf("only %d pages", len(pages))
	}
	return pages
}

// blocks are the fenced blocks of a kind.
func blocks(page, kind string) (found []string) {
	for _, m := range regexp.MustCompile("(?s)```"+kind+"\n(.*?)```").FindAllStringSubmatch(page, -1) {
		found = append(found, m[1])
	}
	return found
}

// Every Caddyfile in the docs is loaded and run, the JSON as well.
func TestDocs(t *testing.T) {
	ran := 0
	for name, page := range docs(t) {
		for i, text := range blocks(page, "caddyfile") {
			t.Run(fmt.Sprintf("%s %d", name, i+1), func(t *testing.T) { runDocs(t, name, text) })
			ran++
		}
		for _, text := range blocks(page, "json") {
			t.Run(name+" json", func(t *testing.T) {
				config := `{"admin":{"disabled":true},"apps":{"http":{"servers":{"s":{"routes":[{"handle":[` + text + `]}]}}}}}`
				if err := caddy.Load([]byte(config), true); err != nil {
					t.Error(err)
				}
				if err := caddy.Stop(); err != nil {
					t.Error(err)
				}
			})
			ran++
		}
	}
	if ran < 11 {
		t.Errorf("only %d blocks were found and run", ran)
	}
}

func runDocs(t *testing.T, name, text string) {
	if strings.Contains(text, "store redis") {
		return // TestFleetDocs
	}
	if _, err := adapt(text, name); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	if strings.Contains(text, "format filter") && !logFilter.MatchString(text) {
		filter := regexp.MustCompile(`(?m)^\s+(?:request|env)>.*`)
		if theirs, ours := filter.FindAllString(text, -1), filter.FindAllString(globalOptions, -1); fmt.Sprint(theirs) != fmt.Sprint(ours) {
			t.Errorf("the tests run with another log filter than %q", theirs)
		}
		return
	}
	s := newStage(t)
	if strings.Contains(text, "dws_emulator") {
		address := freeAddress(t)
		s.load(strings.Replace(strings.ReplaceAll(text, "127.0.0.1:8081", address)+simpleSite, "endpoint API", "endpoint http://"+address, 1))
		s.token("/documents/doc1")
		s.wantMints(0) // not the test's own stand-in
		return
	}
	auth := newApp(t)
	auth.setAnswer("HTTP/1.1 200 OK\nRemote-User: alice\nContent-Length: 0\n\n")
	text = strings.ReplaceAll(site(t, text, "app:3000", "APP"), "auth:9091", auth.address)
	if strings.HasPrefix(text, "{\n") { // its global options go into those of the tests
		global, rest, _ := strings.Cut(text, "\n}\n")
		if err := loadText(strings.Replace(s.fill(globalOptions), "\tadmin ", strings.TrimPrefix(global, "{\n")+"\n\tadmin ", 1) + s.fill(rest)); err != nil {
			t.Fatal(err)
		}
	} else {
		s.load(text)
	}
	switch {
	case strings.Contains(text, "@outside"):
		s.token("/documents/doc1")
		s.load(strings.Replace(text, "private_ranges", "192.0.2.0/24", 1))
		s.get("/documents/doc2", 403)
		s.wantMints(1)
		return
	case strings.Contains(text, "handle /app/"):
		s.get("/documents/doc1", 404)
		s.wantMints(0)
		return
	case strings.Contains(text, "handle_errors 401"):
		page, _ := s.fetch("GET", "/documents/doc1")
		session, _ := s.fetch("GET", "/documents/doc1/session")
		if page.StatusCode != 401 || page.Header.Get("WWW-Authenticate") == "" || session.StatusCode != 401 || session.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("the page: %d %v; the session path: %d %v", page.StatusCode, page.Header, session.StatusCode, session.Header)
		}
		r := httptest.NewRequest("GET", "/", nil)
		r.SetBasicAuth("alice", "change me")
		s.app.setAnswer("HTTP/1.1 204 No Content\n\n")
		s.session("/documents/doc1/session", "Authorization", r.Header.Get("Authorization"))
		return
	case strings.Contains(text, "app_provided"):
		page := s.token("/editor")
		s.app.setAnswer("HTTP/1.1 204 No Content\n\n")
		if jwt, _ := s.session("/editor/session"); jwt != page || claims(t, jwt)["user_id"] != "alice" || claims(t, jwt)["allowed_documents"] != nil {
			t.Errorf("the page got %v, and the browser %v", claims(t, page), claims(t, jwt))
		}
	case strings.Contains(text, "header ?Cache-Control"):
		resp, _ := s.fetch("GET", "/documents/doc1")
		other, _ := s.fetch("GET", "/elsewhere")
		if resp.Header.Get("Cache-Control") != "private, no-store" || other.Header.Get("Cache-Control") != "max-age=600" {
			t.Errorf("Cache-Control %q, elsewhere %q", resp.Header.Get("Cache-Control"), other.Header.Get("Cache-Control"))
		}
	}
	if strings.Contains(text, "document_path /documents/:id") {
		s.token("/documents/doc1")
	}
	s.app.setAnswer("HTTP/1.1 204 No Content\nX-Viewer-Document: doc1\n\n")
	for path := range strings.SplitSeq("/documents/1/session /contracts/1/session", " ") {
		pattern := strings.Replace(path, "1", "[:*](id)?", 1)
		if regexp.MustCompile("session_path " + pattern).MatchString(text) {
			s.session(path)
		}
	}
	s.wantMints(1)
}

// What explain prints in the docs is what it prints.
func TestDocsOfExplain(t *testing.T) {
	page := docs(t)["docs/configuration.md"]
	handled := filepath.Join(t.TempDir(), "Caddyfile")
	for _, text := range blocks(page, "caddyfile") {
		if strings.Contains(text, "handle /app/") {
			if err := os.WriteFile(handled, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	exp := regexp.MustCompile(`"exp": \d+`)
	explained := 0
	for _, text := range blocks(page, "text") {
		first, _, _ := strings.Cut(text, "\n")
		address, ok := strings.CutPrefix(first, "request     GET ")
		if !ok {
			continue
		}
		explained++
		config := "../examples/existing-app/Caddyfile"
		if explained == 4 {
			config = handled
		}
		_, stdout, stderr := caddyCommand(t, nil, "viewer-session", "explain", "--config", config, address)
		if exp.ReplaceAllString(stdout, "") != exp.ReplaceAllString(text, "") {
			t.Errorf("%s: the docs say\n%s\nand the command\n%s%s", address, text, stdout, stderr)
		}
	}
	if explained != 4 {
		t.Errorf("%d explanations", explained)
	}
}

// explain knows what the examples do with fourteen addresses.
func TestExplainExamples(t *testing.T) {
	for _, test := range []struct {
		example, url string
		code         int
		says         string
	}{
		{"quickstart", "http://localhost:8080/documents/floor-plan", 0, "document    floor-plan"},
		{"existing-app", "https://docs.example.com/documents/42/edit", 0, "permissions download read write"},
		{"basic-auth", "https://docs.example.com/documents/42", 0, "authentication lets the request through"},
		{"cookie", "https://docs.example.com/documents/42", 0, "goes to     the cookie viewer_session"},
		{"ids-from-elsewhere", "https://docs.example.com/view?doc=42", 0, "document    42"},
		{"ids-from-elsewhere", "https://docs.example.com/archive/2026/lease-7.pdf", 0, "document    {http.vars.document}"},
		{"static-site", "https://docs.example.com/documents/other", 2, `the id "other" does not fit`},
		{"server-rendered", "http://localhost:8080/documents/floor-plan/session", 0, "the browser, as JSON"},
		{"single-page-app", "http://localhost:8080/api/documents/floor-plan/session", 0, "document    floor-plan"},
		{"single-page-app", "http://localhost:8080/api/documents/floor-plan/session", 0, "it is answered with 204, as for the matcher path_regexp"},
		{"own-ids", "http://localhost:8080/contracts/7/session", 0, "document    {X-Viewer-Document}"},
		{"own-documents", "http://localhost:8080/editor/session", 0, "document    the page's own"},
		{"observability", "http://docs.example.com/documents/42", 2, "try https"},
		{"fleet", "http://localhost:8080/documents/42", 0, "document    42"},
	} {
		code, stdout, stderr := caddyCommand(t, nil, "viewer-session", "explain", "--config", "../examples/"+test.example+"/Caddyfile", test.url)
		if code != test.code || !strings.Contains(stdout, test.says) {
			t.Errorf("%s, %s: exit code %d, want %d and %q:\n%s%s", test.example, test.url, code, test.code, test.says, stdout, stderr)
		}
	}
}

// Every link leads somewhere: to a file that is there, and a heading in it.
func TestLinksInDocs(t *testing.T) {
	pages := docs(t)
	anchors := make(map[string][]string)
	for name, page := range pages {
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(regexp.MustCompile("(?s)```.*?```").ReplaceAllString(page, ""), -1) {
			anchors[name] = append(anchors[name], slug(m[1]))
		}
	}
	for name, page := range pages {
		for _, m := range regexp.MustCompile(`\]\(([^)]+)\)`).FindAllStringSubmatch(regexp.MustCompile("(?s)```.*?```").ReplaceAllString(page, ""), -1) {
			if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
				continue
			}
			path, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if path != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(name), path))
			}
			if _, err := os.Stat("../" + target); err != nil {
				t.Errorf("%s: %s leads nowhere", name, m[1])
			}
			if anchor != "" && !slices.Contains(anchors[target], anchor) {
				t.Errorf("%s: %s has no such heading; there are %q", name, m[1], anchors[target])
			}
		}
	}
	if size := len(pages["README.md"]); size > 12<<10 {
		t.Errorf("README.md has %d bytes; a front page has 12 KB at most", size)
	}
}

// slug is the anchor of a heading, as GitHub makes it.
func slug(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		default:
			return -1
		}
	}, heading)
}

// Every command in the docs is one of those that are run: by the tests named
// here, or by CI.
func TestCommandsInDocs(t *testing.T) {
	sources := ""
	for _, glob := range []string{"../*_test.go", "../*/*_test.go", "../internal/*/*_test.go"} {
		names, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			sources += string(text)
		}
	}
	ci, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	known := []string{ // and what runs them
		"go run -tags nobadger,nomysql,nopgx ./cmd/caddy run --config examples/quickstart/Caddyfile", // TestExamples
		"curl -s localhost:8080/documents/",                                                         // TestExamples
		"curl -X PUT 127.0.0.1:8081/emulator/fault", "curl -X DELETE 127.0.0.1:8081/emulator/fault", // TestExamples
		"curl localhost:2019/viewer_session/", "curl -X POST localhost:2019/viewer_session/purge", // TestPurge
		"go build -tags nobadger,nomysql,nopgx ./cmd/caddy", "xcaddy build --with github.com/viewersession/caddy-viewer-session", // CI
		"./caddy viewer-session mint", "./caddy viewer-session explain", // TestMintCommand, TestDocsOfExplain
		"bash scripts/test.sh", "scripts/test.sh", "bash .ci/run", "scripts/fuzz.sh", // CI
		"go run ./scripts/mutate", "npm --prefix tools/web run types", // CONTRIBUTING.md, for contributors
		"VIEWER_SESSION_",
	}
	if !strings.Contains(string(ci), "scripts/test.sh") || !strings.Contains(string(ci), "xcaddy") {
		t.Error("CI does not run the tests, or no build with xcaddy")
	}
	names := regexp.MustCompile(`-(?:run|bench) '?([\w|^$/]+)'?`)
	for name, page := range docs(t) {
		for _, block := range blocks(page, "sh") {
			for line := range strings.Lines(block) {
				line = strings.TrimSpace(line)
				isKnown := slices.ContainsFunc(known, func(command string) bool { return strings.HasPrefix(line, command) })
				if line != "" && !isKnown && !strings.HasPrefix(line, "go test ") {
					t.Errorf("%s: nothing runs %q", name, line)
				}
				for _, m := range names.FindAllStringSubmatch(line, -1) {
					for pattern := range strings.SplitSeq(strings.Trim(m[1], "^$"), "|") {
						if pattern != "" && !regexp.MustCompile(`func (?:Test|Benchmark|Fuzz)?\w*`+pattern).MatchString(sources) {
							t.Errorf("%s: no test or benchmark is called %q: %s", name, pattern, line)
						}
					}
				}
			}
		}
	}
}
