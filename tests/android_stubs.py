"""What an app of kapps-ship calls of Android, AndroidX and MediaPipe, to compile it without them.

No package index that the tests reach has these libraries, so their declarations are here, by their
reference pages (developer.android.com/reference, and MediaPipe's of
com.google.mediapipe.tasks.vision): as much as the app needs, and no behaviour but what the tests
look at. `Classifier` runs with them: its region of interest is printed, and it names one class.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

_JAVA = """
android.Manifest: public class Manifest { public static class permission {
  public static final String CAMERA = "android.permission.CAMERA"; } }
android.content.Context: public class Context {
  public Context getApplicationContext() { return this; }
  public final String getString(int id, Object... arguments) { return ""; } }
android.content.pm.PackageManager: public class PackageManager {
  public static final int PERMISSION_GRANTED = 0; }
android.os.Bundle: public class Bundle {}
android.os.SystemClock: public class SystemClock {
  public static long elapsedRealtime() { return 0; } }
android.view.View: public class View {}
android.widget.TextView: public class TextView extends android.view.View {
  public final void setText(CharSequence text) {} public final void setText(int id) {}
  public CharSequence getText() { return ""; } }
android.graphics.Bitmap: public class Bitmap {
  private final int width, height;
  public Bitmap(int width, int height) { this.width = width; this.height = height; }
  public int getWidth() { return width; } public int getHeight() { return height; } }
android.graphics.RectF: public class RectF {
  public float left, top, right, bottom;
  public RectF(float left, float top, float right, float bottom) {
    this.left = left; this.top = top; this.right = right; this.bottom = bottom; } }
android.app.Activity: public class Activity extends android.content.Context {
  protected void onCreate(android.os.Bundle state) {} protected void onDestroy() {}
  public void setContentView(int id) {}
  public <T extends android.view.View> T findViewById(int id) { return null; }
  public final void runOnUiThread(Runnable action) { action.run(); } }
androidx.lifecycle.LifecycleOwner: public interface LifecycleOwner {}
androidx.activity.result.ActivityResultCallback: public interface ActivityResultCallback<O> {
  void onActivityResult(O result); }
androidx.activity.result.ActivityResultLauncher: public abstract class ActivityResultLauncher<I> {
  public void launch(I input) {} }
androidx.activity.result.contract.ActivityResultContract:
  public abstract class ActivityResultContract<I, O> {}
androidx.activity.result.contract.ActivityResultContracts: public class ActivityResultContracts {
  public static final class RequestPermission extends ActivityResultContract<String, Boolean> {} }
androidx.activity.ComponentActivity: import androidx.activity.result.*;
  import androidx.activity.result.contract.ActivityResultContract;
  public class ComponentActivity extends android.app.Activity
      implements androidx.lifecycle.LifecycleOwner {
  public final <I, O> ActivityResultLauncher<I> registerForActivityResult(
    ActivityResultContract<I, O> contract, ActivityResultCallback<O> callback) { return null; } }
androidx.core.content.ContextCompat: import android.content.Context;
  public class ContextCompat {
  public static int checkSelfPermission(Context context, String permission) { return 0; }
  public static java.util.concurrent.Executor getMainExecutor(Context context) { return null; } }
androidx.camera.core.UseCase: public abstract class UseCase {}
androidx.camera.core.Camera: public interface Camera {}
androidx.camera.core.CameraSelector: public final class CameraSelector {
  public static final CameraSelector DEFAULT_BACK_CAMERA = new CameraSelector(); }
androidx.camera.core.ImageInfo: public interface ImageInfo { int getRotationDegrees(); }
androidx.camera.core.ImageProxy: public interface ImageProxy extends AutoCloseable {
  void close(); ImageInfo getImageInfo();
  default android.graphics.Bitmap toBitmap() { return null; } }
androidx.camera.core.Preview: public final class Preview extends UseCase {
  public interface SurfaceProvider {}
  public void setSurfaceProvider(SurfaceProvider provider) {}
  public static final class Builder { public Preview build() { return new Preview(); } } }
androidx.camera.core.ImageAnalysis: public final class ImageAnalysis extends UseCase {
  public static final int STRATEGY_KEEP_ONLY_LATEST = 0, OUTPUT_IMAGE_FORMAT_RGBA_8888 = 2;
  public interface Analyzer { void analyze(ImageProxy image); }
  public void setAnalyzer(java.util.concurrent.Executor executor, Analyzer analyzer) {}
  public static final class Builder {
    public Builder setBackpressureStrategy(int strategy) { return this; }
    public Builder setOutputImageFormat(int format) { return this; }
    public ImageAnalysis build() { return new ImageAnalysis(); } } }
androidx.camera.view.PreviewView: public final class PreviewView extends android.view.View {
  public androidx.camera.core.Preview.SurfaceProvider getSurfaceProvider() { return null; } }
com.google.common.util.concurrent.ListenableFuture:
  public interface ListenableFuture<V> extends java.util.concurrent.Future<V> {
  void addListener(Runnable listener, java.util.concurrent.Executor executor); }
androidx.camera.lifecycle.ProcessCameraProvider: import androidx.camera.core.*;
  public final class ProcessCameraProvider {
  public static com.google.common.util.concurrent.ListenableFuture<ProcessCameraProvider>
    getInstance(android.content.Context context) { return null; }
  public void unbindAll() {}
  public Camera bindToLifecycle(androidx.lifecycle.LifecycleOwner owner, CameraSelector selector,
    UseCase... cases) { return null; } }
com.google.mediapipe.framework.image.MPImage: public class MPImage {}
com.google.mediapipe.framework.image.BitmapImageBuilder: public class BitmapImageBuilder {
  public BitmapImageBuilder(android.graphics.Bitmap bitmap) {}
  public MPImage build() { return new MPImage(); } }
com.google.mediapipe.tasks.components.containers.Category: public class Category {
  public float score() { return 0.5f; } public String categoryName() { return "one"; } }
com.google.mediapipe.tasks.components.containers.Classifications: public class Classifications {
  public java.util.List<Category> categories() { return java.util.List.of(new Category()); } }
com.google.mediapipe.tasks.components.containers.ClassificationResult:
  public class ClassificationResult {
  public java.util.List<Classifications> classifications() {
    return java.util.List.of(new Classifications()); } }
com.google.mediapipe.tasks.core.BaseOptions: public class BaseOptions {
  String path;
  public static Builder builder() { return new Builder(); }
  public static class Builder {
    public Builder setModelAssetPath(String path) { System.out.println(path); return this; }
    public BaseOptions build() { return new BaseOptions(); } } }
com.google.mediapipe.tasks.vision.core.ImageProcessingOptions:
  public class ImageProcessingOptions {
  public static Builder builder() { return new Builder(); }
  public static class Builder {
    public Builder setRegionOfInterest(android.graphics.RectF region) {
      System.out.println(region.left + " " + region.top + " " + region.right + " " + region.bottom);
      return this; }
    public Builder setRotationDegrees(int degrees) { System.out.println(degrees); return this; }
    public ImageProcessingOptions build() { return new ImageProcessingOptions(); } } }
com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifierResult:
  import com.google.mediapipe.tasks.components.containers.ClassificationResult;
  public class ImageClassifierResult {
  public ClassificationResult classificationResult() { return new ClassificationResult(); } }
com.google.mediapipe.tasks.vision.imageclassifier.ImageClassifier:
  import com.google.mediapipe.framework.image.MPImage;
  import com.google.mediapipe.tasks.vision.core.ImageProcessingOptions;
  public final class ImageClassifier implements AutoCloseable {
  public static ImageClassifier createFromOptions(
    android.content.Context context, ImageClassifierOptions options) {
    return new ImageClassifier(); }
  public ImageClassifierResult classify(MPImage image, ImageProcessingOptions options) {
    return new ImageClassifierResult(); }
  public void close() { System.out.println("closed"); }
  public static class ImageClassifierOptions {
    public static Builder builder() { return new Builder(); }
    public static class Builder {
      public Builder setBaseOptions(com.google.mediapipe.tasks.core.BaseOptions options) {
        return this; }
      public Builder setMaxResults(Integer most) { return this; }
      public ImageClassifierOptions build() { return new ImageClassifierOptions(); } } } }
"""


def compile_stubs(folder: Path, *more: Path) -> Path:
    """The folder of their classes, and of those of `more` Java files."""
    sources = [str(path) for path in more]
    for name, body in re.findall(r"^(\w[\w.]+):(.*?)(?=^\w|\Z)", _JAVA, re.DOTALL | re.MULTILINE):
        package, _, simple = name.rpartition(".")
        path = folder / "stubs" / package.replace(".", "/") / f"{simple}.java"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"package {package};\n{body}")
        sources.append(str(path))
    classes = folder / "classes"
    subprocess.run(["javac", "-nowarn", "-d", str(classes), *sources], check=True)
    return classes
