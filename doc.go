// Package viewersession is a Caddy HTTP middleware that hands a Nutrient DWS
// Viewer session token for the document in the URL to the app behind it.
//
// A request flows one way: request → route → ask → token → injection → next.
// handler.go reads like these steps; each step has a file of its own.
package viewersession
