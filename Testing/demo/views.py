"""Real Slicer views without the application: slices and 3D, drawn by Slicer's displayable managers into PNG files."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk

SLICE_MANAGERS = ("vtkMRMLSegmentationsDisplayableManager2D", "vtkMRMLMarkupsDisplayableManager")
VIEW_MANAGERS = ("vtkMRMLCameraDisplayableManager", "vtkMRMLViewDisplayableManager",
                 "vtkMRMLSegmentationsDisplayableManager3D", "vtkMRMLMarkupsDisplayableManager")


class SliceView:
    """One slice view of ``slicer.mrmlScene``.

    Args:
        node: vtkMRMLSliceNode. size: (width, height) pixels.
    """

    def __init__(self, node: Any, size: tuple[int, int] = (640, 640)) -> None:
        self.node, self.size = node, size
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        self.logic.SetMRMLScene(slicer.mrmlScene)
        self.logic.SetSliceNode(node)
        composite = slicer.vtkMRMLSliceCompositeNode()
        composite.SetLayoutName(node.GetLayoutName())  # before it is added: other views' logics take one without
        self.composite = slicer.mrmlScene.AddNode(composite)
        self.logic.SetSliceCompositeNode(self.composite)
        self.window, self.renderer = _window(size)
        node.SetDimensions(*size, 1)
        self.logic.ResizeSliceNode(*size)
        self.mapper = vtk.vtkImageMapper()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        image = vtk.vtkActor2D()
        image.SetMapper(self.mapper)
        image.SetLayerNumber(0)
        self.renderer.AddActor2D(image)
        self.group = _group(slicer.vtkMRMLSliceViewDisplayableManagerFactory, SLICE_MANAGERS, self.renderer, node)

    def show(self, volume: Any, slice_to_ras: np.ndarray, size: float | None = None) -> None:
        """Show a volume on a plane, (4, 4) slice to RAS.

        Args:
            size: of what the view shows, millimetres; by default the volume is fitted into it.
        """
        self.composite.SetBackgroundVolumeID(volume.GetID())
        self.node.GetSliceToRAS().DeepCopy(np.asarray(slice_to_ras, float).ravel().tolist())
        self.node.UpdateMatrices()
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        field = size or 1.05 * np.diff(np.array(bounds).reshape(3, 2), axis=1).max()
        self.node.SetFieldOfView(field, field * self.size[1] / self.size[0], 1)

    def save(self, path: Path, caption: str = "") -> None:
        """Write what the view shows as PNG."""
        _caption(self.renderer, caption)
        self.logic.UpdatePipeline()
        connection = self.logic.GetImageDataConnection()
        if connection is not None:
            self.mapper.SetInputConnection(connection)
        self.window.Render()
        self.window.Render()  # markups take their places in the first
        _save(self.window, path)


class ThreeDView:
    """The 3D view of ``slicer.mrmlScene``."""

    def __init__(self, size: tuple[int, int] = (640, 640)) -> None:
        self.node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLViewNode", "View1")
        self.node.SetLayoutName("1")
        self.node.SetBoxVisible(False)
        self.node.SetAxisLabelsVisible(False)
        self.window, self.renderer = _window(size)
        interactor = vtk.vtkGenericRenderWindowInteractor()
        interactor.SetRenderWindow(self.window)
        self.renderer.SetBackground(0.75, 0.77, 0.91)
        self.group = _group(slicer.vtkMRMLThreeDViewDisplayableManagerFactory, VIEW_MANAGERS, self.renderer, self.node)

    def save(self, path: Path, caption: str = "", direction: tuple[float, float, float] = (-0.6, 1.0, 0.6)) -> None:
        """Write the scene seen from a direction (R, A, S) as PNG."""
        _caption(self.renderer, caption)
        self.window.Render()
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(*(1000 * value for value in direction))
        camera.SetViewUp(0, 0, 1)
        self.renderer.ResetCamera()
        camera.Zoom(1.1)
        self.renderer.ResetCameraClippingRange()
        self.window.Render()
        _save(self.window, path)


def _caption(renderer: Any, text: str) -> None:
    """Lines of text in the lower left corner, in place of earlier ones."""
    actor = next((one for one in _actors(renderer) if one.IsA("vtkTextActor")), None)
    if actor is None:
        actor = vtk.vtkTextActor()
        actor.SetPosition(12, 10)
        actor.SetLayerNumber(2)
        style = actor.GetTextProperty()
        style.SetFontSize(17)
        style.SetColor(1, 1, 0.6)
        style.SetBackgroundColor(0, 0, 0)
        style.SetBackgroundOpacity(0.6)
        renderer.AddActor2D(actor)
    actor.SetInput(text)


def _actors(renderer: Any) -> list[Any]:
    actors = renderer.GetActors2D()
    return [actors.GetItemAsObject(index) for index in range(actors.GetNumberOfItems())]


def _window(size: tuple[int, int]) -> tuple[Any, Any]:
    # Without a display, Linux needs EGL (Mesa's will do); elsewhere the default window draws offscreen.
    headless = sys.platform == "linux" and not os.environ.get("DISPLAY")
    window = vtk.vtkEGLRenderWindow() if headless else vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    renderer = vtk.vtkRenderer()
    interactor = vtk.vtkGenericRenderWindowInteractor()  # the displayable managers look for one
    window.AddRenderer(renderer)
    interactor.SetRenderWindow(window)
    return window, renderer


def _group(factory_class: Any, managers: tuple[str, ...], renderer: Any, node: Any) -> Any:
    factory = factory_class.GetInstance()
    factory.SetMRMLApplicationLogic(slicer.app.applicationLogic())
    for name in managers:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = slicer.vtkMRMLDisplayableManagerGroup()
    group.Initialize(factory, renderer)
    group.SetMRMLDisplayableNode(node)
    return group


def _save(window: Any, path: Path) -> None:
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()
