import jakarta.servlet.http.Cookie;
import jakarta.servlet.http.HttpServlet;
import jakarta.servlet.http.HttpServletRequest;
import jakarta.servlet.http.HttpServletResponse;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import org.apache.catalina.Context;
import org.apache.catalina.startup.Tomcat;

/** What a servlet sees of the token's header and cookie. */
public class Echo extends HttpServlet {
	@Override
	protected void service(HttpServletRequest request, HttpServletResponse response) throws IOException {
		List<String> header = new ArrayList<>(), cookie = new ArrayList<>();
		for (String value : Collections.list(request.getHeaders("X-Viewer-Session"))) {
			header.add(encode(value));
		}
		if (request.getCookies() != null) {
			for (Cookie c : request.getCookies()) {
				if (c.getName().equals("vs")) {
					cookie.add(encode(c.getValue()));
				}
			}
		}
		response.setContentType("application/json");
		response.getWriter().print("{\"header\":[" + String.join(",", header) + "],\"cookie\":[" + String.join(",", cookie) + "]}");
	}

	private static String encode(String value) {
		return '"' + Base64.getEncoder().encodeToString(value.getBytes(StandardCharsets.UTF_8)) + '"';
	}

	public static void main(String[] args) throws Exception {
		Tomcat tomcat = new Tomcat();
		tomcat.setBaseDir(Files.createTempDirectory("tomcat").toString());
		tomcat.setHostname("127.0.0.1");
		tomcat.setPort(Integer.parseInt(args[0].split(":")[1]));
		tomcat.getConnector().setProperty("address", "127.0.0.1");
		Context context = tomcat.addContext("", null);
		Tomcat.addServlet(context, "echo", new Echo());
		context.addServletMappingDecoded("/*", "echo");
		tomcat.start();
		tomcat.getServer().await();
	}
}
