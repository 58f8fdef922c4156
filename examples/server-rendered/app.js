// An app that renders its pages. It holds no API key and calls no API: the token for a page is in a request header.
import express from "express";

const documents = new Map([
	["floor-plan", "Floor plan"],
	["site-survey", "Site survey"],
]);

const app = express();
app.disable("x-powered-by");

app.get("/", (req, res) => {
	const links = [...documents].map(([id, title]) => `<li><a href="/documents/${id}">${title}</a>`);
	res.send(`<!doctype html><title>Documents</title><h1>Documents</h1><ul>${links.join("")}</ul>`);
});

app.get("/documents/:id", (req, res) => {
	const title = documents.get(req.params.id);
	if (!title) {
		return res.sendStatus(404);
	}
	res.send(`<!doctype html>
<title>${title}</title>
<h1>${title}</h1>
<p><a href="/">All documents</a></p>
<p role="alert"></p>
<div id="viewer" style="height: 80vh"></div>
<script src="/nutrient-viewer.js"></script>
<script type="module">
	import { loadViewer } from "/viewer-session.js";

	const alert = document.querySelector("[role=alert]");
	const onError = (error) => (alert.textContent = error.message);
	loadViewer(NutrientViewer, { container: "#viewer" }, {
		session: ${JSON.stringify(req.get("X-Viewer-Session"))},
		sessionUrl: location.pathname.replace(/\\/$/, "") + "/session",
		onError, // a new token is needed, and there is none
		onSession: () => (alert.textContent = ""), // there is one again
	}).catch(onError);
</script>`);
});

// The page asks for its next token. 204 is a yes, and the gateway answers with the token.
app.get("/documents/:id/session", (req, res) => {
	res.sendStatus(documents.has(req.params.id) ? 204 : 404);
});

app.listen(process.env.PORT ?? 3000, "127.0.0.1");
