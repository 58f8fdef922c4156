// Command go is an app with ids and users of its own. The login stands for yours.
package main

import (
	"cmp"
	"crypto/rand"
	"html/template"
	"log"
	"net/http"
	"os"
	"sync"
)

type contract struct {
	Title, Document string
	permissions     map[string]string
}

var contracts = map[string]contract{
	"42": {"Lease", "lease-2026", map[string]string{"alice": "read write", "bob": "read"}},
	"43": {"Non-disclosure agreement", "nda-2025", map[string]string{"alice": "read"}},
}

var index = template.Must(template.New("").Parse(`<!doctype html>{{if .User}}<title>Contracts</title><h1>Contracts</h1><p>{{.User}}</p>
<ul>{{range $id, $contract := .Contracts}}<li><a href="/contracts/{{$id}}">{{$contract.Title}}</a>{{end}}</ul>
{{else}}<title>Log in</title><form method="post" action="/login"><button name="user" value="alice">Alice</button>
<button name="user" value="bob">Bob</button></form>{{end}}`))

var page = template.Must(template.New("").Parse(`<!doctype html>
<title>{{.Title}}</title>
<h1>{{.Title}}</h1>
<p><a href="/">All contracts</a></p>
<p role="alert"></p>
<div id="viewer" style="height: 80vh"></div>
<script src="/nutrient-viewer.js"></script>
<script type="module">
	import { loadViewer } from "/viewer-session.js";
	const alert = document.querySelector("[role=alert]");
	const onError = (error) => {
		alert.textContent = error.message + " ";
		if (error.code === "login") {
			alert.insertAdjacentHTML("beforeend", '<a href="/">Log in</a>');
		}
	};
	loadViewer(NutrientViewer, { container: "#viewer" }, {
		sessionUrl: location.pathname.replace(/\/$/, "") + "/session",
		onError, // a new token is needed, and there is none
		onSession: () => alert.replaceChildren(), // there is one again
	}).catch(onError);
</script>`))

var logins sync.Map // user by cookie

func user(r *http.Request) string {
	if cookie, err := r.Cookie("login"); err == nil {
		if name, ok := logins.Load(cookie.Value); ok {
			return name.(string)
		}
	}
	return ""
}

// opened says who may open a contract: for its page, and for the tokens that the page asks for.
func opened(serve func(w http.ResponseWriter, r *http.Request, user string, c contract)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := user(r)
		c, ok := contracts[r.PathValue("id")]
		switch {
		case name == "":
			http.Error(w, "log in first", http.StatusUnauthorized)
		case !ok:
			http.NotFound(w, r)
		case c.permissions[name] == "":
			http.Error(w, "not yours", http.StatusForbidden)
		default:
			serve(w, r, name, c)
		}
	}
}

func main() {
	http.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		_ = index.Execute(w, map[string]any{"User": user(r), "Contracts": contracts})
	})
	http.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		name, login := "bob", rand.Text()
		if r.FormValue("user") == "alice" {
			name = "alice"
		}
		logins.Store(login, name)
		http.SetCookie(w, &http.Cookie{Name: "login", Value: login, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode}) //nolint:gosec // plain HTTP on this machine
		http.Redirect(w, r, "/", http.StatusSeeOther)
	})
	http.HandleFunc("GET /contracts/{id}", opened(func(w http.ResponseWriter, _ *http.Request, _ string, c contract) {
		_ = page.Execute(w, c)
	}))
	http.HandleFunc("GET /contracts/{id}/session", opened(func(w http.ResponseWriter, _ *http.Request, user string, c contract) {
		w.Header().Set("X-Viewer-Document", c.Document)
		w.Header().Set("X-Viewer-Permissions", c.permissions[user])
		w.Header().Set("X-Viewer-User", user)
		w.WriteHeader(http.StatusNoContent)
	}))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "3000"), nil)) //nolint:gosec // an example
}
